"""What the simulator itself saw: its own TTFT and gaps, from the send times it stamps into every chunk."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, TypedDict

FINE_BITS: Final = 10
"""Bins of the linear part are 2**10 ns wide."""
LINEAR_BITS: Final = 28
"""Below 2**28 ns (268 ms) bins are linear; above, each power of two has 2**14 of them: 0.006 % wide."""
_OCTAVE_BITS: Final = 14
_PER_OCTAVE: Final = 1 << _OCTAVE_BITS
_LINEAR_BINS: Final = 1 << (LINEAR_BITS - FINE_BITS)
_OCTAVES: Final = 14
_BINS: Final = _LINEAR_BINS + _OCTAVES * _PER_OCTAVE
_BLOCK: Final = 1024
_EMPTY: Final = bytes(4 * _BLOCK)
_NS_PER_MS: Final = 1e6
_NS_PER_S: Final = 1e9
LINEAR_NS: Final = 1 << LINEAR_BITS


def bin_of(ns: int) -> int:
    """Return the bin that ``ns`` falls in; what is beyond 73 minutes falls in the last one."""
    if ns < LINEAR_NS:
        return ns >> FINE_BITS if ns > 0 else 0
    bits = ns.bit_length()
    octave = bits - LINEAR_BITS - 1
    if octave >= _OCTAVES:
        return _BINS - 1
    return _LINEAR_BINS + octave * _PER_OCTAVE + (ns >> (bits - 1 - _OCTAVE_BITS)) - _PER_OCTAVE


def middle_of(index: int) -> float:
    """Return the nanoseconds in the middle of a bin."""
    if index < _LINEAR_BINS:
        return ((index << FINE_BITS) + ((index + 1) << FINE_BITS)) / 2
    octave, place = divmod(index - _LINEAR_BINS, _PER_OCTAVE)
    shift = octave + LINEAR_BITS - _OCTAVE_BITS
    return (((place + _PER_OCTAVE) << shift) + ((place + 1 + _PER_OCTAVE) << shift)) / 2


class Summary(TypedDict):
    """What is told of a distribution: milliseconds, ``None`` where nothing was counted."""

    n: int
    mean: float | None
    min: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    p999: float | None
    max: float | None


class Histogram:
    """Counts of durations, at most 1 µs or 0.006 % wide, in memory that does not grow.

    ``bins`` is written by the hot path itself: ``bins[ns >> FINE_BITS] += 1`` below :data:`LINEAR_NS`.
    ``total_ns`` is kept by whoever counts.
    """

    __slots__ = ("bins", "total_ns")

    def __init__(self) -> None:
        self.bins = array("I", bytes(4 * _BINS))
        self.total_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration."""
        self.bins[bin_of(ns)] += 1
        self.total_ns += ns

    def clear(self) -> None:
        """Forget everything, in place."""
        self.bins[:] = array("I", bytes(4 * _BINS))
        self.total_ns = 0

    def filled(self) -> Iterator[tuple[float, int]]:
        """Yield (middle in ns, count) of every bin that is not empty, in order."""
        bins = self.bins
        # Empty blocks compare equal in one step, so a scrape does not hold up the loop.
        view = memoryview(bins).cast("B")
        for start in range(0, _BINS, _BLOCK):
            if view[4 * start : 4 * (start + _BLOCK)].tobytes() == _EMPTY:
                continue
            for index in range(start, start + _BLOCK):
                if bins[index]:
                    yield middle_of(index), bins[index]

    def summary(self, *others: Histogram) -> Summary:
        """Return n, mean, min, percentiles and max in milliseconds; ``None`` where nothing was counted.

        ``others`` are counted as well.
        """
        filled = sorted(one for histogram in (self, *others) for one in histogram.filled())
        n = sum(count for _, count in filled)
        if n == 0:
            return Summary(
                n=0, mean=None, min=None, p50=None, p90=None, p95=None, p99=None, p999=None, max=None
            )
        total_ns = sum(histogram.total_ns for histogram in (self, *others))
        shares = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
        low, p50, p90, p95, p99, p999, high = (
            round(value / _NS_PER_MS, 6) for value in _quantiles(filled, n, shares)
        )
        mean = round(total_ns / n / _NS_PER_MS, 6)
        return Summary(n=n, mean=mean, min=low, p50=p50, p90=p90, p95=p95, p99=p99, p999=p999, max=high)

    def cumulative(self, bounds_s: Sequence[float]) -> list[int]:
        """Return how many are at most each of the ascending ``bounds_s``, and last how many there are."""
        answer = [0] * (len(bounds_s) + 1)
        for middle, count in self.filled():
            place = next(
                (i for i, bound in enumerate(bounds_s) if middle <= bound * _NS_PER_S), len(bounds_s)
            )
            answer[place] += count
        for i in range(1, len(answer)):
            answer[i] += answer[i - 1]
        return answer


def _quantiles(filled: Sequence[tuple[float, int]], n: int, shares: Sequence[float]) -> list[float]:
    """Return linear interpolations between order statistics, each known to its bin."""
    answer: list[float] = []
    for share in shares:
        rank = share * (n - 1)
        low = int(rank)
        below, above = _order(filled, low), _order(filled, min(low + 1, n - 1))
        answer.append(below + (above - below) * (rank - low))
    return answer


def _order(filled: Sequence[tuple[float, int]], rank: int) -> float:
    seen = 0
    for middle, count in filled:
        seen += count
        if seen > rank:
            return middle
    return filled[-1][0]


class Truth:
    """Counters and histograms of one simulator since the last reset."""

    __slots__ = (
        "aborted",
        "blocked",
        "completed",
        "faults",
        "gaps",
        "input_tokens",
        "late",
        "max_running",
        "max_waiting",
        "multi_gaps",
        "output_tokens",
        "queue",
        "received",
        "refused",
        "since_ns",
        "ttft",
    )

    def __init__(self, now_ns: int) -> None:
        self.ttft = Histogram()
        """Request fully received to first token sent."""
        self.gaps = Histogram()
        """Between consecutive chunks, the later one holding one token."""
        self.multi_gaps = Histogram()
        """Between consecutive chunks, the later one holding several tokens."""
        self.queue = Histogram()
        """Request fully received to admitted into the batch."""
        self.reset(now_ns)

    def reset(self, now_ns: int) -> None:
        """Forget everything; gauges go on."""
        for histogram in (self.ttft, self.gaps, self.multi_gaps, self.queue):
            histogram.clear()
        self.received = self.completed = self.aborted = self.refused = self.faults = 0
        self.input_tokens = self.output_tokens = 0
        self.late = self.blocked = self.max_running = self.max_waiting = 0
        self.since_ns = now_ns

    def summary(self) -> dict[str, object]:
        """Return what ``GET /sim/truth`` answers, gauges left out."""
        ttft, chunk_gaps = self.ttft.summary(), self.gaps.summary(self.multi_gaps)
        return {
            "clock": "monotonic",
            "since_ns": self.since_ns,
            "requests": self.completed,
            "received": self.received,
            "aborted": self.aborted,
            "refused": self.refused,
            "faults": self.faults,
            "chunks": ttft["n"] + chunk_gaps["n"],
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "ttft_ms": ttft,
            "itl_ms": self.gaps.summary(),
            "icl_ms": chunk_gaps,
            "queue_ms": self.queue.summary(),
            "late_chunks": self.late,
            "blocked_chunks": self.blocked,
            "max_running": self.max_running,
            "max_waiting": self.max_waiting,
        }

"""All values of a pooled metric: exact percentiles up to a cap, a histogram's beyond it.

A worker fills a pool for each pooled metric and load point and saves it; the parent loads and merges them.
Raw values go to the file as they come, so what is held in memory is the histogram and one block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.core.errors import RecordError
from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.stats.histogram import LogHistogram, bin_of
from tokenweir.core.stats.percentiles import interpolate, ranks

Ints = npt.NDArray[np.int64]

EXACT_CAP: Final = 10_000_000
_BLOCK: Final = 1 << 16
_READ: Final = 1 << 20
_MAGIC: Final = b"weirpool"
_FOOTER: Final = struct.Struct("<qqq8s")
_WORD: Final = 8
_NARROW: Final = 2**32 - 1


class _Moments(msgspec.Struct, kw_only=True):
    n: int = 0
    total: int = 0
    low: int = 0
    high: int = 0
    exact: bool = True

    def add(self, other: _Moments) -> None:
        if other.n:
            self.low = min(self.low, other.low) if self.n else other.low
            self.high = max(self.high, other.high) if self.n else other.high
        self.n += other.n
        self.total += other.total
        self.exact = self.exact and other.exact


@dataclass(frozen=True, slots=True)
class _Stored:
    """Raw values at the start of a saved pool."""

    path: Path
    count: int

    def blocks(self) -> Iterator[Ints]:
        with self.path.open("rb") as file:
            for start in range(0, self.count, _READ):
                yield np.fromfile(file, np.int64, min(_READ, self.count - start))


class Pool:
    """Whole numbers (nanoseconds), counted in any order, by one thread.

    With a ``path``, raw values are written there as they come and :meth:`save` completes that file; without
    one they are held in memory. Above ``cap`` values the raw ones are let go and the histogram answers.
    """

    def __init__(self, path: Path | None = None, *, cap: int = EXACT_CAP) -> None:
        self._path = path
        self._cap = cap
        self._file: BinaryIO | None = path.open("wb") if path else None
        self._histogram = LogHistogram()
        self._moments = _Moments()
        self._held: list[npt.NDArray[np.int64 | np.uint32]] = []
        self._stored: list[_Stored] = []
        self._waiting: list[Ints] = []
        self._waiting_count = 0

    @property
    def n(self) -> int:
        """How many values were added."""
        return self._moments.n + self._waiting_count

    @property
    def exact(self) -> bool:
        """Whether percentiles are those of the raw values."""
        self._settle()
        return self._moments.exact

    @property
    def mean(self) -> float:
        """The exact mean; NaN for no values."""
        self._settle()
        return self._moments.total / self._moments.n if self._moments.n else float("nan")

    @property
    def low(self) -> float:
        """The smallest value; NaN for no values."""
        self._settle()
        return float(self._moments.low) if self._moments.n else float("nan")

    @property
    def high(self) -> float:
        """The largest value; NaN for no values."""
        self._settle()
        return float(self._moments.high) if self._moments.n else float("nan")

    def add(self, values: Ints) -> None:
        """Count values; the array must not change afterwards."""
        self._waiting.append(values)
        self._waiting_count += len(values)
        if self._waiting_count >= _BLOCK:
            self._settle()

    def merge(self, other: Pool) -> None:
        """Count what another pool counted. Its file, if it has one, must stay until percentiles are taken."""
        other._settle()
        if other._file:
            raise RecordError(f"the pool {str(other._path)!r} is still being written", mend="save it first")
        self._settle()
        self._moments.add(other._moments)
        self._histogram.merge(other._histogram)
        self._stored += other._stored
        for block in other._held:
            self._keep(block.astype(np.int64))
        self._let_go()

    def percentiles(self, percents: Sequence[float]) -> FloatArray:
        """Return percentiles by linear interpolation: exact, above the cap within 0.1 %; NaN for no values.

        The raw values are read block by block; only bins of the histogram that hold a rank are sorted.
        """
        self._settle()
        if not self._moments.exact:
            found = self._histogram.percentiles(percents)
            return np.clip(found, self._moments.low, self._moments.high)
        if not self._moments.n:
            return np.full(len(percents), np.nan)
        places = ranks(self._moments.n, percents)
        at = self._order_statistics(sorted({rank for low, high, _ in places for rank in (low, high)}))
        return np.array([interpolate(at[low], at[high], share) for low, high, share in places])

    def _order_statistics(self, wanted: list[int]) -> dict[int, float]:
        reached = np.cumsum(self._histogram.counts)
        bins = np.searchsorted(reached, np.array(wanted), side="right")
        chosen = np.zeros(len(reached), np.bool_)
        chosen[bins] = True
        parts = [block[chosen[bin_of(block)]] for block in self._blocks()]
        values = np.sort(np.concatenate(parts))
        # Ranks shift by the values in the bins that were passed over.
        passed = np.cumsum(np.where(chosen, 0, self._histogram.counts))
        return {rank: float(values[rank - passed[place]]) for rank, place in zip(wanted, bins, strict=True)}

    def save(self, path: Path | None = None) -> None:
        """Write the pool to ``path``, or complete the file it was opened with.

        Raises:
            RecordError: no path is known.
        """
        self._settle()
        if self._file:
            for stored in self._stored:
                for block in stored.blocks():
                    block.tofile(self._file)
            self._finish(self._file)
            self._file = None
        elif path:
            with path.open("wb") as file:
                for block in self._blocks():
                    block.tofile(file)
                self._finish(file)
        else:
            raise RecordError("a pool that is held in memory was saved without a path", mend="name a path")

    def _finish(self, file: BinaryIO) -> None:
        raw = file.tell() // _WORD
        self._histogram.counts.tofile(file)
        meta = msgspec.json.encode(self._moments)
        file.write(meta + _FOOTER.pack(raw, len(self._histogram.counts), len(meta), _MAGIC))
        if self._path:
            file.close()
            self._stored = [_Stored(self._path, raw)] if raw else []

    @classmethod
    def load(cls, path: Path, *, cap: int = EXACT_CAP) -> Pool:
        """Open a saved pool; raw values stay in the file until they are asked for.

        Raises:
            RecordError: the file is no saved pool.
        """
        made = cls(cap=cap)
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _FOOTER.size))
            footer = file.read(_FOOTER.size)
            if len(footer) < _FOOTER.size or not footer.endswith(_MAGIC):
                raise RecordError(f"{str(path)!r} is no saved pool of values", mend="run the benchmark again")
            raw, bins, meta, _ = _FOOTER.unpack(footer)
            file.seek(raw * _WORD)
            made._histogram = LogHistogram(np.fromfile(file, np.int64, bins))
            made._moments = msgspec.json.decode(file.read(meta), type=_Moments)
        made._stored = [_Stored(path, raw)] if raw else []
        made._let_go()
        return made

    def _blocks(self) -> Iterator[Ints]:
        for held in self._held:
            yield held.astype(np.int64)
        for stored in self._stored:
            yield from stored.blocks()
        if self._file and self._path:
            self._file.flush()
            yield from _Stored(self._path, self._file.tell() // _WORD).blocks()

    def _settle(self) -> None:
        """Count what waits. The block is written, kept or let go."""
        if not self._waiting:
            return
        block = np.concatenate(self._waiting).astype(np.int64, copy=False)
        self._waiting, self._waiting_count = [], 0
        if not len(block):
            return
        self._histogram.add(block)
        self._moments.add(
            _Moments(n=len(block), total=sum_of(block), low=int(block.min()), high=int(block.max()))
        )
        self._keep(block)
        self._let_go()

    def _keep(self, block: Ints) -> None:
        if not self._moments.exact:
            return
        if self._file:
            block.tofile(self._file)
        elif block.min() >= 0 and block.max() <= _NARROW:
            # Half the memory, for what lasts no longer than 4.29 s: nearly every gap.
            self._held.append(block.astype(np.uint32))
        else:
            self._held.append(block)

    def _let_go(self) -> None:
        self._moments.exact = self._moments.exact and self._moments.n <= self._cap
        if not self._moments.exact:
            self._held, self._stored = [], []
            if self._file:
                self._file.seek(0)
                self._file.truncate()


def sum_of(values: Ints) -> int:
    """Return the exact sum, which may exceed 64 bits."""
    high, low = values >> 32, values & 0xFFFFFFFF
    return (int(high.sum()) << 32) + int(low.sum())

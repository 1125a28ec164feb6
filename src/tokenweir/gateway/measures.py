"""What is counted while requests are worked on: cheap enough for every chunk, and told by ``GET /metrics``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from tokenweir.core.clock import Clock, SystemClock
from tokenweir.core.events import Usage
from tokenweir.core.quota import Limit
from tokenweir.gateway.metering.usage import TokenCount
from tokenweir.ports.ledger import Charge
from tokenweir.ports.quota import Headroom
from tokenweir.telemetry.bins import Bins

_NS_PER_S: Final = 1_000_000_000
_LATENCY: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ANSWER: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_GAP: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_LIMITS: Final = 2_000
"""Limits that are remembered, at most; those of further users are not told."""

_TOKEN: Final = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|arguments)"\s*:\s*"[^"]|"name"\s*:\s*"[^"]'
)
"""What a chunk with a token holds, and the opening one with the role alone does not."""

Path = Literal["direct", "queued"]


class Times:
    """The times of one streamed answer. ``first_ns`` is the time to its first token, 0 until that has come."""

    __slots__ = ("_add", "_last_ns", "_now", "_start_ns", "_ttft", "first_ns")

    def __init__(self, clock: Clock, ttft: Bins, gaps: Bins, start_ns: int) -> None:
        # Looked up here once, and not for each chunk.
        self._now = clock.monotonic_ns
        self._add = gaps.add
        self._ttft = ttft
        self._start_ns = start_ns
        self._last_ns = 0
        self.first_ns = 0

    def piece(self, data: bytes, chunks: int) -> None:
        """Note bytes of a stream that hold ``chunks`` chunks; each is taken for a token once the first has come."""
        last = self._last_ns
        if last:
            if chunks:
                now = self._last_ns = self._now()
                self._add((now - last) / chunks / _NS_PER_S, chunks)
        elif _TOKEN.search(data) is not None:
            self.tokens(1)

    def tokens(self, count: int) -> None:
        """Note tokens that came at once; the gap is spread over them."""
        now = self._now()
        last, self._last_ns = self._last_ns, now
        if last:
            self._add((now - last) / count / _NS_PER_S, count)
        else:
            self.first_ns = max(1, now - self._start_ns)
            self._ttft.add(self.first_ns / _NS_PER_S)


class Measures:
    """Counts of one process."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.requests: Counter[tuple[str, str]] = Counter()
        """Requests answered, by route and status."""
        self.duration: dict[tuple[str], Bins] = {}
        """From a request's head to its answer's end, by route."""
        self.tokens: Counter[tuple[str, str]] = Counter()
        """Tokens charged for direct requests, by model and kind."""
        self.ttft: dict[tuple[str, Path], Bins] = {}
        self.itl: dict[tuple[str, Path], Bins] = {}
        self.refused: Counter[str] = Counter()
        """Requests that ended in an error of ours, by its code."""
        self.queued_tokens: Counter[str] = Counter()
        """Tokens set aside for queued requests, by model, when they were accepted."""
        self.worked: Counter[tuple[str, str]] = Counter()
        """Tokens that endpoints counted for queued requests, by model and kind."""
        self.settled: Counter[tuple[str, str, str]] = Counter()
        """Rows of the ledger, by model, ending and source."""
        self.settled_tokens: Counter[tuple[str, str]] = Counter()
        self.lag = Bins(_LAG)
        """From a request's end to its row in the ledger."""
        self._rooms: dict[Limit, Headroom] = {}

    def now(self) -> int:
        """Return the monotonic clock."""
        return self._clock.monotonic_ns()

    def stream(self, model: str, path: Path, start_ns: int) -> Times:
        """Measure a streamed answer that was asked for at ``start_ns``."""
        key = (model, path)
        ttft = self.ttft.get(key)
        if ttft is None:
            ttft = self.ttft[key] = Bins(_LATENCY)
            self.itl[key] = Bins(_GAP)
        return Times(self._clock, ttft, self.itl[key], start_ns)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests[route, str(status)] += 1
        bins = self.duration.get((route,))
        if bins is None:
            bins = self.duration[route,] = Bins(_ANSWER)
        bins.add(seconds)

    def charged(self, model: str, count: TokenCount) -> None:
        """Count what a direct request is charged for."""
        tokens = self.tokens
        tokens[model, "input"] += count.input_tokens
        tokens[model, "output"] += count.output_tokens
        if count.cached_tokens:
            tokens[model, "cached"] += count.cached_tokens

    def answered(self, model: str, usage: Usage) -> None:
        """Count what an endpoint says that a queued request took."""
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
        ):
            if tokens:
                self.worked[model, kind] += tokens

    def wrote(self, batch: Sequence[Charge]) -> None:
        """Count rows of the ledger that were written just now."""
        now = self._clock.wall_ns()
        for charge in batch:
            row = charge.row
            self.settled[row.model, row.ending, row.source] += 1
            self.settled_tokens[row.model, "input"] += row.input_tokens
            self.settled_tokens[row.model, "output"] += row.output_tokens
            if row.cached_tokens:
                self.settled_tokens[row.model, "cached"] += row.cached_tokens
            self.lag.add(max(0, now - row.settled_at) / _NS_PER_S)

    def left(self, headroom: Sequence[Headroom]) -> None:
        """Remember what is left of limits."""
        rooms = self._rooms
        for room in headroom:
            if room.limit in rooms or len(rooms) < _LIMITS:
                rooms[room.limit] = room

    def rooms(self) -> Iterable[Headroom]:
        """Return what is left of the limits that were used in windows that have not ended."""
        now = self._clock.wall_ns()
        for limit in [limit for limit, room in self._rooms.items() if room.resets_at <= now]:
            del self._rooms[limit]
        return tuple(self._rooms.values())

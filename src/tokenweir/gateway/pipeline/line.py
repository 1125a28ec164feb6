"""The processors of one stage, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

from tokenweir.core.errors import WeirError
from tokenweir.gateway.direct.relay import Sink
from tokenweir.gateway.pipeline.processor import Ask, End, Processor, Ready, Sieve
from tokenweir.gateway.queued.endings import Ended

Outcome = Literal["passed", "changed", "answered", "refused"]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A processor at its place: its name, and the models that it looks at, if not all."""

    use: str
    processor: Processor
    models: frozenset[str] = frozenset()

    def looks_at(self, model: str) -> bool:
        """Whether requests for a model pass it."""
        return not self.models or model in self.models


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has passed a line: as it goes on, or its answer. ``steps`` are those it passed."""

    ask: Ask
    steps: tuple[tuple[Processor, Ask], ...] = ()
    ready: Ready | None = None

    def around(self, sink: Sink, *, degraded: bool = False) -> Sink:
        """Return where the answer is to be written."""
        for processor, ask in self.steps:
            seen = msgspec.structs.replace(ask, degraded=True) if degraded else ask
            sink = processor.around(seen, sink)
        return sink

    def sieves(self) -> list[Sieve]:
        """Return what the events of the answer pass, in this order."""
        found = [processor.sieve(ask) for processor, ask in reversed(self.steps)]
        return [sieve for sieve in found if sieve is not None]


class Line:
    """Processors in order. ``counts`` says how often each had which outcome."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self.counts: Counter[tuple[str, Outcome]] = Counter()

    @property
    def guards_answers(self) -> bool:
        """Whether some processor keeps something out of answers."""
        return any(place.processor.guards_answers for place in self.places)

    async def ask(self, ask: Ask) -> Asked:
        """Pass a request through. Raises what a processor refuses it with."""
        steps: list[tuple[Processor, Ask]] = []
        for place in self.places:
            if not place.looks_at(ask.model):
                continue
            try:
                found = await place.processor.ask(ask)
            except WeirError:
                self.counts[place.use, "refused"] += 1
                raise
            if isinstance(found, Ready):
                self.counts[place.use, "answered"] += 1
                return Asked(ask=ask, steps=tuple(steps), ready=found)
            self.counts[place.use, "passed" if found.fields is ask.fields else "changed"] += 1
            ask = found
            steps.append((place.processor, ask))
        return Asked(ask=ask, steps=tuple(steps))

    async def ended(self, end: End) -> Ended:
        """Pass an ended request through."""
        for place in self.places:
            if place.looks_at(end.ended.record.model):
                ended = await place.processor.ended(end)
                self.counts[place.use, "passed" if ended is end.ended else "changed"] += 1
                end = msgspec.structs.replace(end, ended=ended)
        return end.ended

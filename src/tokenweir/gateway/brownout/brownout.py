"""The ladder at work: looks at the waits, climbs and leaves rungs, and makes less of requests meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import BrownedOutError, ConfigError
from tokenweir.gateway.brownout.ladder import LadderState, Normal, Pressed, Threshold, after
from tokenweir.gateway.brownout.ladder import rung_of as rung_number
from tokenweir.gateway.brownout.measures import FasterModel, Lessened, Queue, lessen, rung_of
from tokenweir.gateway.brownout.settings import Does, RungSettings, SloSettings
from tokenweir.gateway.brownout.signals import FirstTokens
from tokenweir.ports.access import Caller
from tokenweir.ports.queue import QueueDepth
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.brownout")
_NS_PER_S: Final = 1_000_000_000

Depth = Callable[[], Awaitable[QueueDepth | None]]


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen at the last look: waits in ns, ``None`` where nothing is known, and the pressure they make."""

    ttft_ns: int | None = None
    queue_age_ns: int | None = None
    pressure: float = 0.0


class Brownout:
    """A ladder over the waits of one gateway. :meth:`run` looks until cancelled.

    ``depth`` asks how the queue stands. Raises ConfigError for a rung that names a model which nobody serves.
    """

    def __init__(
        self,
        rungs: Sequence[RungSettings],
        slo: SloSettings,
        *,
        clock: Clock,
        models: Iterable[str],
        depth: Depth | None = None,
    ) -> None:
        self._rungs = tuple(rung_of(rung) for rung in rungs)
        self._thresholds = [
            Threshold(enter=rung.enter, leave=rung.leave, dwell_ns=rung.dwell) for rung in rungs
        ]
        self._slo = slo
        self._clock = clock
        self._depth = depth
        self.first_tokens = FirstTokens(clock, window_ns=slo.window)
        self.state: LadderState = Normal()
        self.waits = Waits()
        self.counts: Counter[Does] = Counter()
        """Requests of which less was made, by measure."""
        self._check(tuple(models))

    def _check(self, models: tuple[str, ...]) -> None:
        for number, rung in enumerate(self._rungs):
            if isinstance(rung.measure, Queue) and self._depth is None:
                raise ConfigError(
                    f"gateway.brownout[{number}]: this gateway has no queue", mend="leave this rung out"
                )
            named = rung.measure.models.values() if isinstance(rung.measure, FasterModel) else ()
            for model in named:
                if model not in models:
                    raise ConfigError(
                        f"gateway.brownout[{number}]: no endpoint serves the model {model!r}",
                        mend=f"models here: {', '.join(models)}",
                    )

    @property
    def rung(self) -> int:
        """How many rungs hold; 0 is none."""
        return rung_number(self.state)

    @property
    def doing(self) -> tuple[Does, ...]:
        """What is done at present, in order."""
        return tuple(rung.does for rung in self._rungs[: self.rung])

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._slo.interval / _NS_PER_S)

    async def look(self) -> None:
        """Look at the waits once."""
        depth = await self._depth() if self._depth is not None else None
        self.note(None if depth is None else depth.oldest_ns)

    def note(self, queue_age_ns: int | None) -> None:
        """Climb or leave a rung, by the times to the first token and the age of the oldest job."""
        slo = self._slo
        ttft_ns, pressure = None, 0.0
        if slo.ttft is not None:
            ttft_ns = self.first_tokens.wait_ns(slo.quantile, slow_ns=slo.ttft, least=slo.samples)
            pressure = (ttft_ns or 0) / slo.ttft
        if slo.queue_age is not None:
            pressure = max(pressure, (queue_age_ns or 0) / slo.queue_age)
        self.waits = Waits(ttft_ns=ttft_ns, queue_age_ns=queue_age_ns, pressure=pressure)
        before = self.rung
        self.state = after(self.state, pressure, self._clock.monotonic_ns(), self._thresholds)
        if self.rung != before:
            self._tell(before)

    def _tell(self, before: int) -> None:
        climbed = isinstance(self.state, Pressed) and self.rung > before
        _LOG.warning(
            "brown-out climbs" if climbed else "brown-out eases",
            rung=self.rung,
            does=list(self.doing),
            pressure=round(self.waits.pressure, 3),
            ttft_ms=None if self.waits.ttft_ns is None else round(self.waits.ttft_ns / 1e6, 1),
            queue_age_ms=None if self.waits.queue_age_ns is None else round(self.waits.queue_age_ns / 1e6, 1),
        )

    def lessen(self, caller: Caller, raw: bytes, *, queued: bool) -> Lessened:
        """Return what the rungs that hold leave of a request.

        Raises:
            ParameterError: the body cannot be used.
            BrownedOutError: it is refused for now.
        """
        rungs = self._rungs[: self.rung]
        if not rungs:
            return Lessened(raw=raw)
        try:
            found = lessen(rungs, caller, raw, queued=queued)
        except BrownedOutError as error:
            self.counts["refuse" if error.degraded == "refused" else "refuse_features"] += 1
            raise
        self.counts.update(found.does)
        return found

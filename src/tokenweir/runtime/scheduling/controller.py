"""Keeps a model's ITL below its target: it takes load away step by step, and gives it back more slowly.

::

    level    0     1          2             3             4             5             6
    prefill  all   1/2        1/4           1/8           1/8           1/8           1/8
    batch    all   all        3/4           1/2           1/4           1/4           1/4
    state    on    shrink     shrink        shrink        shrink        shed          refuse

"All" of a batch is what ran when it began to shrink, so that it shrinks also where far fewer run than may. One level
up for each verdict above the target, one level down for several verdicts below a lower line in a row: between the two
lines nothing changes, so that it does not swing.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import msgspec

from tokenweir.core.units import format_duration
from tokenweir.runtime.bridge.messages import Stepped, Tune
from tokenweir.runtime.scheduling.itl import ItlWindow
from tokenweir.runtime.scheduling.states import Degraded, Enabled, Step

_S: Final = 1_000_000_000
_MS: Final = 1_000_000
_LEAST_PREFILL: Final = 16
_LEAST_TOKENS: Final = 8
"""A 95th percentile of fewer says nothing."""


class _Level(msgspec.Struct, frozen=True):
    prefill: Fraction
    batch: Fraction
    step: Step | None


_LEVELS: Final = (
    _Level(Fraction(1), Fraction(1), None),
    _Level(Fraction(1, 2), Fraction(1), "shrink"),
    _Level(Fraction(1, 4), Fraction(3, 4), "shrink"),
    _Level(Fraction(1, 8), Fraction(1, 2), "shrink"),
    _Level(Fraction(1, 8), Fraction(1, 4), "shrink"),
    _Level(Fraction(1, 8), Fraction(1, 4), "shed"),
    _Level(Fraction(1, 8), Fraction(1, 4), "refuse"),
)


class ControlOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model's load is controlled.

    ``target_ns`` bounds the p95 of the ITL over the last ``window_ns``; it is judged every ``interval_ns``.
    ``calm`` verdicts in a row below ``relief`` · target give a level back.
    """

    target_ns: int
    max_batch: int
    prefill_tokens: int
    window_ns: int = 2 * _S
    interval_ns: int = 500 * _MS
    calm: int = 4
    relief: float = 0.8


class Controller:
    """The controller of one model."""

    __slots__ = ("_calm", "_due_ns", "_full", "_level", "_model", "_options", "_reason", "_window")

    def __init__(self, model: str, options: ControlOptions) -> None:
        self._model = model
        self._options = options
        self._window = ItlWindow(window_ns=options.window_ns)
        self._full = options.max_batch
        self._level = 0
        self._calm = 0
        self._due_ns: int | None = None
        self._reason = ""

    @property
    def state(self) -> Enabled | Degraded:
        """What it does to the load."""
        step = _LEVELS[self._level].step
        return Enabled() if step is None else Degraded(step=step, reason=self._reason)

    @property
    def batch(self) -> int:
        """Sequences that may be decoded at once."""
        share = _LEVELS[self._level].batch
        return self._options.max_batch if share == 1 else max(1, int(self._full * share))

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that may be read in one step."""
        least = min(_LEAST_PREFILL, self._options.prefill_tokens)
        return max(least, int(self._options.prefill_tokens * _LEVELS[self._level].prefill))

    @property
    def due_ns(self) -> int | None:
        """When the next verdict is due, ``None`` before the first step."""
        return self._due_ns

    @property
    def next_wake_ns(self) -> int | None:
        """When it wants to be asked again though nothing happens: only while it holds load back."""
        return self._due_ns if self._level else None

    def p95_ns(self, now_ns: int) -> int | None:
        """Return the p95 of the ITL now, ``None`` where no tokens came."""
        return self._window.p95_ns(now_ns)

    def observe(self, stepped: Stepped, now_ns: int) -> None:
        """Count a step."""
        self._window.observe(stepped, now_ns)
        if self._due_ns is None:
            self._due_ns = now_ns + self._options.interval_ns

    def forget(self) -> None:
        """Forget what was measured, of an engine that is gone; the level stays."""
        self._window.clear()

    def judge(self, now_ns: int, *, running: int) -> Tune | None:
        """Change the level if a verdict is due and calls for it; return what the engine is told with each change.

        ``running`` is how many sequences are being decoded. One alone is never held responsible: without others
        there is no load to take away, and a machine that is slower than the target must still serve.
        """
        if self._due_ns is None or now_ns < self._due_ns:
            return None
        before = self._level
        tokens = self._window.tokens(now_ns)
        p95_ns = self._window.p95_ns(now_ns)
        if running <= 1 or (p95_ns is not None and p95_ns < self._options.relief * self._options.target_ns):
            self._relieve()
        elif p95_ns is not None and tokens >= _LEAST_TOKENS:
            self._calm = 0
            if p95_ns > self._options.target_ns:
                self._raise(p95_ns, running)
        self._due_ns = now_ns + self._options.interval_ns if tokens or self._level else None
        return None if self._level == before else self.tune

    @property
    def tune(self) -> Tune:
        """What the engine is to be told now."""
        return Tune(model=self._model, batch=self.batch, prefill_tokens=self.prefill_tokens)

    def _raise(self, p95_ns: int, running: int) -> None:
        if _LEVELS[self._level].batch == 1:
            self._full = min(self._options.max_batch, running)
        self._level = min(self._level + 1, len(_LEVELS) - 1)
        target = format_duration(self._options.target_ns)
        self._reason = f"ITL p95 {p95_ns / _MS:.1f} ms is above its target of {target}"
        # What was measured under the old level says nothing of the new one.
        self._window.clear()

    def _relieve(self) -> None:
        self._calm += 1
        if self._level and self._calm >= self._options.calm:
            self._calm = 0
            self._level -= 1

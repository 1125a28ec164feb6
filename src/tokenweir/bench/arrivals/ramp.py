"""An open loop whose rate changes evenly with time."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.core.units import format_duration, format_rate


class Ramp(msgspec.Struct, frozen=True):
    """From ``lo`` to ``hi`` requests per second, evenly over ``over_ns``, then ``hi``."""

    lo: float
    hi: float
    over_ns: int

    @property
    def text(self) -> str:
        """The canonical notation, such as ``ramp=5/s..50/s:over=30s``."""
        return f"ramp={format_rate(self.lo)}..{format_rate(self.hi)}:over={format_duration(self.over_ns)}"

    @property
    def open_loop(self) -> bool:
        """True: sending never waits for answers."""
        return True

    @property
    def asked_rate(self) -> float | None:
        """``None``: no single rate is asked for."""
        return None

    def times_ns(self, start: int, count: int) -> npt.NDArray[np.float64]:
        """Return the times of requests ``start`` to ``start + count``.

        Formula: request k is due when the integral of the rate reaches k. On the slope lo·t + s·t²/2 = k with
        s = (hi - lo) / over, so t = 2k / (lo + √(lo² + 2·s·k)), which loses no digits when s is small.
        """
        k = np.arange(start, start + count, dtype=np.float64)
        over = self.over_ns / 1e9
        slope = (self.hi - self.lo) / over
        at_top = (self.lo + self.hi) / 2 * over
        on_slope = np.minimum(k, at_top)
        below = self.lo + np.sqrt(np.maximum(self.lo * self.lo + 2 * slope * on_slope, 0.0))
        seconds = np.divide(2 * on_slope, below, out=np.zeros_like(k), where=below > 0)
        seconds = np.where(k > at_top, over + (k - at_top) / self.hi, seconds)
        return seconds * 1e9

"""Open loops whose gaps between requests are independent draws from one distribution."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.core.units import format_duration, format_number, format_rate


class Constant(msgspec.Struct, frozen=True):
    """A request every 1 / ``rate`` seconds, the first one at once."""

    rate: float

    @property
    def text(self) -> str:
        """The canonical notation, such as ``constant=20/s``."""
        return f"constant={format_rate(self.rate)}"

    @property
    def open_loop(self) -> bool:
        """True: sending never waits for answers."""
        return True

    @property
    def asked_rate(self) -> float | None:
        """Requests per second."""
        return self.rate

    def times_ns(self, start: int, count: int) -> npt.NDArray[np.float64]:
        """Return the times of requests ``start`` to ``start + count``."""
        return np.arange(start, start + count, dtype=np.float64) * (1e9 / self.rate)


class Poisson(msgspec.Struct, frozen=True):
    """Exponential gaps: requests of many users who know nothing of each other, ``rate`` per second."""

    rate: float

    @property
    def text(self) -> str:
        """The canonical notation, such as ``poisson=20/s``."""
        return f"poisson={format_rate(self.rate)}"

    @property
    def open_loop(self) -> bool:
        """True: sending never waits for answers."""
        return True

    @property
    def asked_rate(self) -> float | None:
        """Requests per second, in the long run."""
        return self.rate

    def gaps_ns(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        """Draw ``count`` gaps."""
        return rng.exponential(1e9 / self.rate, count)


class Gamma(msgspec.Struct, frozen=True):
    """Gamma gaps with coefficient of variation ``cv``: 1 is Poisson, more is burstier, less is more even.

    Formula: shape 1 / cv², scale cv² / rate.
    """

    rate: float
    cv: float

    @property
    def text(self) -> str:
        """The canonical notation, such as ``gamma=20/s:cv=2``."""
        return f"gamma={format_rate(self.rate)}:cv={format_number(self.cv)}"

    @property
    def open_loop(self) -> bool:
        """True: sending never waits for answers."""
        return True

    @property
    def asked_rate(self) -> float | None:
        """Requests per second, in the long run."""
        return self.rate

    def gaps_ns(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        """Draw ``count`` gaps."""
        shape = 1.0 / (self.cv * self.cv)
        return rng.gamma(shape, 1e9 / self.rate / shape, count)


class Normal(msgspec.Struct, frozen=True):
    """Normal gaps of mean ``mean_ns`` and standard deviation ``sd_ns``; one below zero is drawn again.

    Drawing again raises the mean where ``sd_ns`` is large beside ``mean_ns``; ``asked_rate`` accounts for it.
    """

    mean_ns: int
    sd_ns: int

    @property
    def text(self) -> str:
        """The canonical notation, such as ``normal=50ms:sd=5ms``."""
        return f"normal={format_duration(self.mean_ns)}:sd={format_duration(self.sd_ns)}"

    @property
    def open_loop(self) -> bool:
        """True: sending never waits for answers."""
        return True

    @property
    def asked_rate(self) -> float | None:
        """Requests per second, in the long run.

        Formula: 1 / (mean + sd · φ(a) / (1 - Φ(a))) with a = -mean / sd, the mean of a normal above zero.
        """
        if self.sd_ns == 0:
            return 1e9 / self.mean_ns
        ratio = -self.mean_ns / self.sd_ns
        density = math.exp(-ratio * ratio / 2) / math.sqrt(2 * math.pi)
        above = math.erfc(ratio / math.sqrt(2)) / 2
        return 1e9 / (self.mean_ns + self.sd_ns * density / above)

    def gaps_ns(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        """Draw at most ``count`` gaps; fewer where some were below zero."""
        drawn = rng.normal(self.mean_ns, self.sd_ns, count)
        return drawn[drawn >= 0]


class Uniform(msgspec.Struct, frozen=True):
    """Gaps anywhere between ``lo_ns`` and ``hi_ns`` with equal chance."""

    lo_ns: int
    hi_ns: int

    @property
    def text(self) -> str:
        """The canonical notation, such as ``uniform=10ms..90ms``."""
        return f"uniform={format_duration(self.lo_ns)}..{format_duration(self.hi_ns)}"

    @property
    def open_loop(self) -> bool:
        """True: sending never waits for answers."""
        return True

    @property
    def asked_rate(self) -> float | None:
        """Requests per second, in the long run."""
        return 2e9 / (self.lo_ns + self.hi_ns)

    def gaps_ns(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        """Draw ``count`` gaps."""
        return rng.uniform(self.lo_ns, self.hi_ns, count)

"""A log-linear histogram of whole numbers: every bin at most 0.1 % wide, so any percentile is that near."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.stats.percentiles import interpolate, ranks

Ints = npt.NDArray[np.int64]

PER_OCTAVE: Final = 1024
_OCTAVE_BITS: Final = 11
_LINEAR: Final = 2 * PER_OCTAVE


def bin_of(values: Ints) -> Ints:
    """Return each value's bin: the value itself below 2048, then 1024 equal bins per doubling. Monotone.

    Negative values share bin 0. Values are below 2^53.
    """
    mantissa, exponent = np.frexp(np.maximum(values, 0).astype(np.float64))
    place = (mantissa * _LINEAR).astype(np.int64) + (exponent.astype(np.int64) - _OCTAVE_BITS) * PER_OCTAVE
    return np.where(values < _LINEAR, np.maximum(values, 0), place)


def lower_edge(bins: Ints) -> FloatArray:
    """Return the smallest value of each bin."""
    octave = np.maximum(bins // PER_OCTAVE - 1, 0)
    return np.where(bins < _LINEAR, bins, bins - octave * PER_OCTAVE) * np.exp2(octave)


class LogHistogram:
    """Counts of whole numbers in bins; grows to the largest value seen, at most some hundred KiB."""

    __slots__ = ("counts",)

    def __init__(self, counts: Ints | None = None) -> None:
        self.counts: Ints = np.zeros(0, np.int64) if counts is None else counts

    def add(self, values: Ints) -> None:
        """Count values."""
        self.merge(LogHistogram(np.bincount(bin_of(values)).astype(np.int64)))

    def merge(self, other: LogHistogram) -> None:
        """Add another histogram's counts."""
        small, large = sorted((self.counts, other.counts), key=len)
        total = large.copy()
        total[: len(small)] += small
        self.counts = total

    def percentiles(self, percents: Sequence[float]) -> FloatArray:
        """Return percentiles within the width of a bin; NaN for no values.

        Formula: each rank is placed in its bin as though the bin's values were spread evenly.
        """
        reached = np.cumsum(self.counts)
        n = int(reached[-1]) if len(reached) else 0
        if n == 0:
            return np.full(len(percents), np.nan)
        return np.array(
            [
                interpolate(self._value(reached, low), self._value(reached, high), share)
                for low, high, share in ranks(n, percents)
            ]
        )

    def _value(self, reached: Ints, rank: int) -> float:
        place = int(np.searchsorted(reached, rank, side="right"))
        low, high = lower_edge(np.array([place, place + 1]))
        if high - low <= 1:
            return float(low)
        before = int(reached[place]) - int(self.counts[place])
        return float(low + (high - low) * (rank - before + 0.5) / int(self.counts[place]))

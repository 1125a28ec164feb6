"""Percentiles by linear interpolation between order statistics, and intervals of quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.stats.distributions import binomial_cdf, normal_quantile
from tokenweir.core.stats.estimates import Interval

_HALF: Final = 0.5
_EXACT_RANKS: Final = 1000


def interpolate(low: float, high: float, share: float) -> float:
    """Return the point ``share`` of the way from ``low`` to ``high``, either of which may be infinite.

    Formula: NumPy's, which starts from the nearer end, so that results agree to the last bit.
    """
    if share == 0 or low == high:
        return low
    if math.isinf(low) or math.isinf(high):
        return high
    step = high - low
    return high - step * (1 - share) if share >= _HALF else low + step * share


def ranks(n: int, percents: Sequence[float]) -> list[tuple[int, int, float]]:
    """Return, for each percentile of ``n`` values, the places (from 0) it lies between and the share."""
    found: list[tuple[int, int, float]] = []
    for percent in percents:
        place = (n - 1) * (percent / 100)
        low = min(int(place), n - 1)
        found.append((low, min(low + 1, n - 1), place - low))
    return found


def percentiles(values: FloatArray, percents: Sequence[float]) -> FloatArray:
    """Return percentiles (0 to 100) of values in any order; NaN for no values. Values may be +inf, not NaN.

    Formula: linear interpolation between the two nearest order statistics; infinite as soon as one of them
    has weight and is infinite. Source: Hyndman and Fan 1996, type 7 (NumPy's default).
    """
    n = len(values)
    if n == 0:
        return np.full(len(percents), np.nan)
    places = ranks(n, percents)
    cuts = sorted({place for low, high, _ in places for place in (low, high)})
    ordered = np.partition(values, cuts)
    return np.array([interpolate(float(ordered[low]), float(ordered[high]), t) for low, high, t in places])


def sorted_percentiles(ordered: FloatArray, percents: Sequence[float]) -> FloatArray:
    """Return what :func:`percentiles` does, of values already in ascending order."""
    if len(ordered) == 0:
        return np.full(len(percents), np.nan)
    places = ranks(len(ordered), percents)
    return np.array([interpolate(float(ordered[low]), float(ordered[high]), t) for low, high, t in places])


def quantile_ranks(n: int, percent: float, confidence: float, inflation: float = 1.0) -> tuple[int, int]:
    """Return the ranks (from 1) that enclose a quantile; 0 and n + 1 are beyond the data.

    ``inflation`` is by how much the variance of the rank exceeds that of independent values.
    Formula: the binomial distribution of the number of values below the quantile, exact for up to 1000
    independent values, else its normal approximation.
    """
    share, tail = percent / 100, (1 - confidence) / 2
    if not 0 < share < 1:
        return (0, n + 1)
    if n <= _EXACT_RANKS and inflation <= 1:
        below = binomial_cdf(n, share)
        low = int(np.searchsorted(below, tail, side="right"))
        high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
        return (low, high)
    reach = normal_quantile(1 - tail) * math.sqrt(n * share * (1 - share) * max(inflation, 1.0))
    return (max(0, math.floor(n * share - reach)), min(n + 1, math.ceil(n * share + reach) + 1))


def quantile_interval(
    ordered: FloatArray, percent: float, confidence: float, inflation: float = 1.0
) -> Interval:
    """Return an interval of a quantile from the order statistics of ascending values, of any distribution.

    An end is infinite where the data hold too few values beyond the quantile.
    """
    low, high = quantile_ranks(len(ordered), percent, confidence, inflation)
    return Interval(
        float(ordered[low - 1]) if low >= 1 else -math.inf,
        float(ordered[high - 1]) if high <= len(ordered) else math.inf,
    )

"""The Mann-Whitney U test: does a value of one run tend to exceed one of the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.stats.distributions import normal_two_sided


@dataclass(frozen=True, slots=True, kw_only=True)
class MannWhitney:
    """``u`` counts pairs with b > a, ties half; ``superiority`` is their share; ``p_value`` is two-sided."""

    u: float
    superiority: float
    p_value: float


def mann_whitney(a: FloatArray, b: FloatArray) -> MannWhitney:
    """Test values in any order, which may be +inf but not NaN; NaN results where a side is empty."""
    return mann_whitney_sorted(np.sort(a), np.sort(b))


def mann_whitney_sorted(a: FloatArray, b: FloatArray) -> MannWhitney:
    """Test ascending values.

    Formula: normal approximation with tie and continuity corrections. Source: Mann and Whitney 1947.
    """
    n_a, n_b = len(a), len(b)
    if not (n_a and n_b):
        return MannWhitney(u=math.nan, superiority=math.nan, p_value=math.nan)
    below = np.searchsorted(a, b, side="left")
    tied = a[np.minimum(below, n_a - 1)] == b
    ties_with_a = np.searchsorted(a, b[tied], side="right") - below[tied]
    u = float(np.sum(below)) + float(np.sum(ties_with_a)) / 2
    # A stable sort of two ascending runs is one merge.
    pooled = np.sort(np.concatenate([a, b]), kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], pooled[1:] != pooled[:-1]]))
    sizes = np.diff(starts, append=len(pooled)).astype(np.float64)
    n = n_a + n_b
    ties = float(np.sum(sizes**3 - sizes))
    variance = n_a * n_b / 12 * (n + 1 - ties / (n * (n - 1)))
    distance = max(0.0, abs(u - n_a * n_b / 2) - 0.5)
    p_value = normal_two_sided(distance / math.sqrt(variance)) if variance > 0 else 1.0
    return MannWhitney(u=u, superiority=u / (n_a * n_b), p_value=p_value)

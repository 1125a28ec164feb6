"""Differences of pairs: the same sample in two runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.stats.clusters import Labels, clustered_mean, independent_mean
from tokenweir.core.stats.distributions import fair_coin_two_sided
from tokenweir.core.stats.estimates import Estimate


def paired_t(a: FloatArray, b: FloatArray) -> Estimate:
    """Return the mean of b − a over independent pairs; its ``p_value`` is the paired t test's."""
    return independent_mean(b - a)


def paired_difference(a: FloatArray, b: FloatArray, clusterings: Iterable[Labels]) -> Estimate:
    """Return the mean of b − a, with the widest of the standard errors that the clusterings give."""
    return widest(b - a, clusterings)


def paired_relative(a: FloatArray, b: FloatArray, clusterings: Iterable[Labels]) -> Estimate:
    """Return (mean b − mean a) / mean a, with the widest of the standard errors that the clusterings give.

    Formula: the ratio R = mean b / mean a, linearised: the clustered error of (b − R·a) / mean a.
    """
    base = float(np.mean(a)) if len(a) else math.nan
    if not base or math.isnan(base):
        return Estimate(value=math.nan, se=math.nan, df=0, n=len(a))
    ratio = float(np.mean(b)) / base
    spread = widest((b - ratio * a) / base, clusterings)
    return Estimate(value=ratio - 1, se=spread.se, df=spread.df, n=len(a))


def widest(values: FloatArray, clusterings: Iterable[Labels]) -> Estimate:
    """Return the mean with the largest of the clustered standard errors and the independent one."""
    best = independent_mean(values)
    for clusters in clusterings:
        found = clustered_mean(values, clusters)
        if found.df > 0 and (found.se, -found.df) > (best.se, -best.df):
            best = found
    return best


def sign_test(a: FloatArray, b: FloatArray) -> float:
    """Return the two-sided p-value that b exceeds a as often as a exceeds b; equal pairs are left out."""
    more, less = int(np.count_nonzero(b > a)), int(np.count_nonzero(b < a))
    return fair_coin_two_sided(more, more + less)


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Pairs that pass in one run only; ``p_value`` is two-sided and exact for up to 1000 of them."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> McNemar:
    """Test whether passes turned into failures as often as failures into passes."""
    only_a, only_b = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
    return McNemar(only_a=only_a, only_b=only_b, p_value=fair_coin_two_sided(only_a, only_a + only_b))

"""Bootstrap intervals, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.stats.distributions import normal_cdf, normal_quantile
from tokenweir.core.stats.estimates import Interval
from tokenweir.core.stats.percentiles import percentiles

Statistic = Callable[[FloatArray], FloatArray]
"""Takes values along the last axis and returns one number for each row."""

_BATCH: Final = 1 << 20
_GROUPS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How to resample: ``bca`` corrects for bias and skew, ``percentile`` reads the resamples as they are."""

    seed: int
    resamples: int = 2000
    confidence: float = 0.95
    method: Literal["bca", "percentile"] = "bca"


def mean_of(rows: FloatArray) -> FloatArray:
    """Return the mean of each row: the usual statistic."""
    return np.mean(rows, axis=-1)


def bootstrap(values: FloatArray, how: Resampling, statistic: Statistic = mean_of) -> Interval:
    """Return an interval of a statistic of independent values.

    Source: Efron and Tibshirani 1993, chapters 13 and 14. The acceleration of BCa is from a jackknife that
    leaves out one of at most 200 groups at a time.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        message = "a bootstrap needs at least one value, got none"
        raise ValueError(message)
    rng = np.random.default_rng(how.seed)
    draws = np.empty(how.resamples)
    step = max(1, _BATCH // n)
    for start in range(0, how.resamples, step):
        size = min(step, how.resamples - start)
        draws[start : start + size] = statistic(values[rng.integers(0, n, (size, n))])
    tail = (1 - how.confidence) / 2
    shares = (tail, 1 - tail)
    if how.method == "bca":
        shares = _bca_shares(values, draws, statistic, shares)
    low, high = percentiles(draws, [100 * share for share in shares])
    return Interval(float(low), float(high))


def paired_bootstrap(
    a: FloatArray, b: FloatArray, how: Resampling, statistic: Statistic = mean_of
) -> Interval:
    """Return an interval of a statistic of the differences b − a, resampling pairs."""
    return bootstrap(b - a, how, statistic)


def clustered_bootstrap(values: FloatArray, clusters: npt.NDArray[np.int64], how: Resampling) -> Interval:
    """Return a percentile interval of the mean, resampling whole clusters (labels ≥ 0)."""
    present = np.bincount(clusters) > 0
    sums = np.bincount(clusters, weights=values)[present]
    sizes = np.bincount(clusters)[present].astype(np.float64)
    rng = np.random.default_rng(how.seed)
    groups = len(sums)
    step = max(1, _BATCH // groups)
    parts: list[FloatArray] = []
    for start in range(0, how.resamples, step):
        drawn = rng.integers(0, groups, (min(step, how.resamples - start), groups))
        parts.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    tail = 100 * (1 - how.confidence) / 2
    low, high = percentiles(np.concatenate(parts), [tail, 100 - tail])
    return Interval(float(low), float(high))


def _bca_shares(
    values: FloatArray, draws: FloatArray, statistic: Statistic, shares: tuple[float, float]
) -> tuple[float, float]:
    """Return the quantiles of the resamples that BCa reads in place of the nominal ones."""
    observed = float(statistic(values[np.newaxis, :])[0])
    below = (np.count_nonzero(draws < observed) + np.count_nonzero(draws == observed) / 2) / len(draws)
    if not 0 < below < 1:
        return shares
    bias = normal_quantile(below)
    acceleration = _acceleration(values, statistic)

    def corrected(share: float) -> float:
        z = bias + normal_quantile(share)
        return normal_cdf(bias + z / (1 - acceleration * z))

    return (corrected(shares[0]), corrected(shares[1]))


def _acceleration(values: FloatArray, statistic: Statistic) -> float:
    groups = min(len(values), _GROUPS)
    label = np.arange(len(values)) * groups // len(values)
    if groups < 2:  # noqa: PLR2004 - leaving one of one out leaves nothing
        return 0.0
    left = np.array([float(statistic(values[label != group][np.newaxis, :])[0]) for group in range(groups)])
    centred = np.mean(left) - left
    spread = float(np.sum(centred**2)) ** 1.5
    return float(np.sum(centred**3)) / (6 * spread) if spread > 0 else 0.0

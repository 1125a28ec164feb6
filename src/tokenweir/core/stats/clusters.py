"""Means of values that depend on each other within clusters: one sample's repeats, or one stretch of time."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.stats.estimates import Estimate

Labels = npt.NDArray[np.int64]

MAX_BLOCKS: Final = 30
BLOCK_VALUES: Final = 8


def time_blocks(times: FloatArray, blocks: int | None = None) -> Labels:
    """Return for each value the block of time it belongs to: consecutive blocks of equal counts.

    By default as many blocks as leave 8 values in each, at most 30: few and long, so that what makes
    neighbours alike in a closed loop stays inside a block.
    """
    n = len(times)
    count = blocks or min(MAX_BLOCKS, max(1, n // BLOCK_VALUES))
    place = np.arange(n, dtype=np.int64) * count // max(n, 1)
    if n < 2 or bool(np.all(times[1:] >= times[:-1])):  # noqa: PLR2004 - one value is in order
        return place
    labels = np.empty(n, np.int64)
    labels[np.argsort(times, kind="stable")] = place
    return labels


def clustered_mean(values: FloatArray, clusters: Labels) -> Estimate:
    """Return the mean with a standard error that allows any dependence within a cluster.

    ``clusters`` are labels ≥ 0. Formula: var = G/(G−1) · Σ_g (Σ_{i∈g} (x_i − mean))² / n², on G − 1 degrees
    of freedom. Source: Liang and Zeger 1986; with blocks of time it is the method of batch means.
    """
    n = len(values)
    if n == 0:
        return Estimate(value=math.nan, se=math.nan, df=0, n=0)
    mean = float(np.mean(values))
    groups = int(np.count_nonzero(np.bincount(clusters)))
    # A label that no value has adds nothing to the sum of squares.
    sums = np.bincount(clusters, weights=values - mean)
    if groups < 2:  # noqa: PLR2004 - a spread takes two
        return Estimate(value=mean, se=math.nan, df=0, n=n)
    se = math.sqrt(groups / (groups - 1) * float(np.sum(sums**2))) / n
    return Estimate(value=mean, se=se, df=groups - 1, n=n)


def independent_mean(values: FloatArray) -> Estimate:
    """Return the mean of independent values: s / √n on n − 1 degrees of freedom."""
    n = len(values)
    if n == 0:
        return Estimate(value=math.nan, se=math.nan, df=0, n=0)
    se = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(value=float(np.mean(values)), se=se, df=n - 1, n=n)


def rank_inflation(values: FloatArray, cut: float, clusters: Labels) -> float:
    """Return by how much clustering widens the share of values at or below ``cut``; at least 1.

    Formula: clustered variance of the share / its binomial variance: the design effect.
    """
    share = clustered_mean((values <= cut).astype(np.float64), clusters)
    plain = share.value * (1 - share.value) / max(share.n, 1)
    return max(1.0, share.se**2 / plain) if plain > 0 and share.df > 0 else 1.0

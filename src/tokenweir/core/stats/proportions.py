"""Shares: how sure one is of a rate of failures."""

from __future__ import annotations

import math

from tokenweir.core.stats.distributions import normal_quantile
from tokenweir.core.stats.estimates import Interval, interval_difference


def wilson(hits: int, n: int, confidence: float) -> Interval:
    """Return Wilson's score interval of a share; [0, 1] for n = 0. Source: Wilson 1927."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = normal_quantile((1 + confidence) / 2)
    share = hits / n
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends of an all-or-nothing sample are exact; rounding must not move them.
    low = 0.0 if hits == 0 else max(0.0, (middle - reach) / scale)
    high = 1.0 if hits == n else min(1.0, (middle + reach) / scale)
    return Interval(low, high)


def share_difference(hits_a: int, n_a: int, hits_b: int, n_b: int, confidence: float) -> Interval:
    """Return Newcombe's interval of the difference b − a of two independent shares; n_a and n_b above 0."""
    return interval_difference(
        hits_a / n_a, wilson(hits_a, n_a, confidence), hits_b / n_b, wilson(hits_b, n_b, confidence)
    )


def share_p_value(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """Return the two-sided p-value of two independent shares being equal: the pooled z test."""
    pooled = (hits_a + hits_b) / (n_a + n_b)
    variance = pooled * (1 - pooled) * (1 / n_a + 1 / n_b)
    if variance == 0:
        return 1.0
    return math.erfc(abs(hits_b / n_b - hits_a / n_a) / math.sqrt(2 * variance))

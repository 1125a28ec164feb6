"""The normal, Student t and binomial distributions, as far as intervals and tests need them."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from tokenweir.core.metrics.base import FloatArray

_NORMAL = NormalDist()
_TINY = 1e-300
_STEPS = 500
_CLOSE = 1e-15


def normal_quantile(probability: float) -> float:
    """Return z with P(Z ≤ z) = probability, which lies strictly between 0 and 1."""
    return _NORMAL.inv_cdf(probability)


def normal_cdf(z: float) -> float:
    """Return P(Z ≤ z)."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def normal_two_sided(z: float) -> float:
    """Return P(|Z| ≥ |z|), accurate far into the tail."""
    return math.erfc(abs(z) / math.sqrt(2))


def t_two_sided(t: float, df: float) -> float:
    """Return P(|T| ≥ |t|) for Student's t with ``df`` > 0 degrees of freedom."""
    if math.isinf(t):
        return 0.0
    return incomplete_beta(df / (df + t * t), df / 2, 0.5)


def t_quantile(probability: float, df: float) -> float:
    """Return t with P(T ≤ t) = probability, by bisection; the normal quantile for infinite ``df``."""
    if math.isinf(df):
        return normal_quantile(probability)
    if probability < 0.5:  # noqa: PLR2004 - the distribution is symmetric about one half
        return -t_quantile(1 - probability, df)
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > tail:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_two_sided(middle, df) > tail else (low, middle)
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b).

    Formula: Lentz's continued fraction, on the side where it converges fast.
    Source: Numerical Recipes, section 6.4 (the formula; the code is written from it).
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    total = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = 1 + term / c
            c = c if abs(c) > _TINY else _TINY
            total *= c * d
        if abs(c * d - 1) < _CLOSE:
            break
    return total


def binomial_cdf(n: int, probability: float) -> FloatArray:
    """Return P(X ≤ k) for k = 0 … n of a binomial with 0 < probability < 1. Takes O(n)."""
    k = np.arange(1, n + 1)
    steps = np.log((n - k + 1) / k) + math.log(probability) - math.log1p(-probability)
    logs = np.concatenate([np.zeros(1), np.cumsum(steps)]) + n * math.log1p(-probability)
    return np.minimum(np.cumsum(np.exp(logs)), 1.0)


def fair_coin_two_sided(heads: int, n: int) -> float:
    """Return the exact two-sided p-value of ``heads`` in ``n`` tosses of a fair coin; 1 for n = 0."""
    few = min(heads, n - heads)
    if n == 0:
        return 1.0
    if n > 1000:  # noqa: PLR2004 - beyond, the normal approximation is good to four digits
        return min(1.0, normal_two_sided(max(0.0, abs(2 * heads - n) - 1) / math.sqrt(n)))
    return min(1.0, 2 * float(binomial_cdf(n, 0.5)[few]))

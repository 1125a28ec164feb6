"""An estimate with its standard error, and the interval, test and smallest detectable effect it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenweir.core.stats.distributions import t_quantile, t_two_sided


@dataclass(frozen=True, slots=True)
class Interval:
    """From ``low`` to ``high``; an infinite end is one that the data do not bound."""

    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether both ends are finite numbers."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with standard error ``se`` on ``df`` degrees of freedom, from ``n`` observations."""

    value: float
    se: float
    df: float
    n: int

    def interval(self, confidence: float) -> Interval:
        """Return the two-sided t interval. With no degree of freedom it is unbounded."""
        if not self.df > 0 or math.isnan(self.se):
            return Interval(-math.inf, math.inf)
        reach = t_quantile((1 + confidence) / 2, self.df) * self.se
        return Interval(self.value - reach, self.value + reach)

    def p_value(self) -> float:
        """Return the two-sided p-value of the value being 0; NaN with no degree of freedom."""
        if not self.df > 0 or math.isnan(self.se):
            return math.nan
        if self.se == 0:
            return 1.0 if self.value == 0 else 0.0
        return t_two_sided(self.value / self.se, self.df)

    def detectable(self, confidence: float, power: float = 0.8) -> float:
        """Return the smallest true effect that a test at this confidence finds with this power.

        Formula: (t at (1 + confidence) / 2 + t at power) · se; NaN with no degree of freedom.
        """
        if not self.df > 0:
            return math.nan
        return (t_quantile((1 + confidence) / 2, self.df) + t_quantile(power, self.df)) * self.se


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Return b − a of independent estimates, with Welch's standard error and degrees of freedom."""
    variance = a.se**2 + b.se**2
    return Estimate(value=b.value - a.value, se=math.sqrt(variance), df=_welch(a, b, variance), n=a.n + b.n)


def relative_difference(a: Estimate, b: Estimate) -> Estimate:
    """Return (b − a) / a of independent estimates, by the delta method; NaN where a is 0."""
    if a.value == 0:
        return Estimate(value=math.nan, se=math.nan, df=0, n=a.n + b.n)
    ratio = b.value / a.value
    variance = (b.se**2 + (ratio * a.se) ** 2) / a.value**2
    df = _welch(a, b, a.se**2 + b.se**2)
    return Estimate(value=ratio - 1, se=math.sqrt(variance), df=df, n=a.n + b.n)


def _welch(a: Estimate, b: Estimate, variance: float) -> float:
    """Return Welch and Satterthwaite's degrees of freedom, 0 where either estimate has none."""
    if not (a.df > 0 and b.df > 0):
        return 0.0
    parts = a.se**4 / a.df + b.se**4 / b.df
    return variance**2 / parts if parts > 0 else a.df + b.df


def interval_difference(
    a: float, a_interval: Interval, b: float, b_interval: Interval, correlation: float = 0.0
) -> Interval:
    """Return an interval of b − a from the separate intervals of two estimates with this correlation.

    Formula: the ends' distances from the estimates added in squares, less what they share.
    Source: Zou and Donner 2008, Zou 2007 (MOVER); Newcombe 1998 for proportions.
    """
    gap = b - a
    return Interval(
        gap - _distance(b - b_interval.low, a_interval.high - a, correlation),
        gap + _distance(b_interval.high - b, a - a_interval.low, correlation),
    )


def _distance(one: float, two: float, correlation: float) -> float:
    if not correlation or math.isinf(one) or math.isinf(two):
        return math.hypot(one, two)
    return math.sqrt(max(0.0, one * one + two * two - 2 * correlation * one * two))

"""Histograms that are cheap to add to: a bisection and two additions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Bins:
    """A histogram: counts by upper bound, and the sum. Values are in the unit of the bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count ``value``, ``times`` over."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return Prometheus' cumulative buckets and the sum."""
        found: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(_bound, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found, self._sum


def _bound(value: float) -> str:
    return f"{value:g}"

"""What the dashboards show: panels in rows, each with its PromQL."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["timeseries", "stat", "bargauge", "table"]
Unit = Literal["reqps", "s", "percentunit", "short", "bytes", "cps"]
Query = tuple[str, str]
"""PromQL, and the legend of its series."""


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One chart. ``about`` says what it means; ``most`` is the top of its scale, where that is fixed."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: Unit = "short"
    kind: Kind = "timeseries"
    most: float | None = None


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A dashboard. ``variables`` are names with the queries that give their values."""

    name: str
    title: str
    rows: tuple[tuple[Panel, ...], ...]
    variables: tuple[Query, ...] = ()


def quantiles(metric: str, by: str = "", where: str = "") -> tuple[Query, ...]:
    """Return p50, p95 and p99 of a histogram."""
    labels = f"le, {by}" if by else "le"
    named = f"{{{{{by}}}}} " if by else ""
    return tuple(
        (
            f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[5m])))",
            f"{named}p{q * 100:g}",
        )
        for q in (0.5, 0.95, 0.99)
    )

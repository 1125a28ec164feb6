"""What the page's script draws: the types of the JSON that ``report.html`` carries.

Latencies are milliseconds, instants seconds since the run's start; ``None`` breaks a line. Numbers are
rounded to four significant digits, which is finer than a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

Number = float | None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a chart; ``role`` picks its look and ``y`` is empty where an axis is shared."""

    name: str
    role: str
    x: list[Number]
    y: list[Number]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """A chart of lines over one x axis. ``marks`` are upright, ``levels`` flat; ``shade`` is the window."""

    id: str
    title: str
    caption: str
    x: str
    x_unit: str
    y: str
    y_unit: str
    lines: list[Line]
    kind: str = "line"
    log_x: bool = False
    log_y: bool = False
    marks: list[Mark] = []
    levels: list[Mark] = []
    shade: tuple[float, float] | None = None
    n: int | None = None


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A labelled straight line across a chart."""

    at: float
    label: str


class Heat(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over time and log-latency bins; ``cells`` is a flat list of column, row, count."""

    id: str
    title: str
    caption: str
    start: float
    width: float
    columns: int
    edges_ms: list[float]
    cells: list[int]
    shade: tuple[float, float] | None
    n: int


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Requests as bars. A row is request, phase, status, then seconds: scheduled, sent, first token, end.

    ``stalls`` has, for each row, begin and end in seconds of gaps longer than ``stall_ms``; it is empty where
    single chunks were not kept.
    """

    id: str
    title: str
    caption: str
    phases: list[str]
    statuses: list[str]
    rows: list[list[Number]]
    stalls: list[list[float]]
    stall_ms: Number
    aligned: bool
    shade: tuple[float, float] | None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One load point in the plane of throughput and interactivity."""

    label: str
    x: Number
    y: Number
    frontier: bool
    trusted: bool
    n: int


class Pareto(msgspec.Struct, frozen=True, kw_only=True):
    """What a user feels against what the server yields, one point per load."""

    id: str
    title: str
    caption: str
    x: str
    x_unit: str
    y: str
    y_unit: str
    points: list[Point]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """All charts of one load point."""

    index: int
    arrival: str
    charts: list[Chart]
    heat: Heat | None
    timeline: Timeline | None


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of what is drawn."""

    run_id: str
    loads: list[Load]
    sweep: list[Chart]
    pareto: Pareto | None


def rounded(value: float | None, digits: int = 4) -> Number:
    """Return ``value`` with that many significant digits; what is no finite number becomes ``None``."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def instants(values: Iterable[float]) -> list[Number]:
    """Return instants in seconds, to 0.1 ms, ``None`` for NaN."""
    return [None if math.isnan(value) else round(float(value), 4) for value in values]


def numbers(values: Iterable[float]) -> list[Number]:
    """Return ``values`` rounded for drawing."""
    return [rounded(float(value)) for value in values]

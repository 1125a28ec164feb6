"""How the values of a run are written for people: numbers, instants, titles, and the limits a spec states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, cast

from tokenweir.bench.records.model import Number, Run
from tokenweir.core.errors import InputError
from tokenweir.core.metrics.registry import METRICS
from tokenweir.core.slo import parse_slo

STATISTICS: Final = ("mean", "min", "p50", "p90", "p95", "p99", "p999", "max")
"""The statistics of a metric, in the order in which they are shown."""

UNKNOWN: Final = "–"
UNATTRIBUTED: Final = "unattributed"
_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
_BYTES_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def statistic(value: Number) -> str:
    """Return a statistic to about four significant digits; ``∞`` is infinite and ``–`` undefined."""
    if value is None:
        return UNKNOWN
    if value == "inf" or (isinstance(value, float) and math.isinf(value)):
        return "∞"
    size = abs(float(value))
    if size == 0:
        return "0"
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.1 else 4  # noqa: PLR2004 - the table itself
    return f"{float(value):,.{decimals}f}"


def whole(value: int | None) -> str:
    """Return a count with thousands apart."""
    return UNKNOWN if value is None else f"{value:,}"


def share(part: float, whole_: float) -> str:
    """Return a share in percent; ``–`` of nothing."""
    if not whole_:
        return UNKNOWN
    value = 100 * part / whole_
    return f"{value:.2g}\N{NO-BREAK SPACE}%" if value < 1 else f"{value:.1f}\N{NO-BREAK SPACE}%"


def percent(value: float | None) -> str:
    """Return a ratio in percent."""
    return UNKNOWN if value is None else share(value, 1.0)


def milliseconds(value: float | None) -> str:
    """Return a latency with its unit."""
    return UNKNOWN if value is None else f"{statistic(value)} ms"


def seconds(value_ns: int) -> str:
    """Return a duration in seconds, minutes or hours."""
    value = value_ns / _NS_PER_S
    if value < 120:  # noqa: PLR2004 - two minutes read better than 119 s reads as 1 min 59 s
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def instant(unix_ns: int) -> str:
    """Return an instant in UTC, to the second."""
    return datetime.fromtimestamp(unix_ns // _NS_PER_S, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(value: int) -> str:
    """Return a number of bytes."""
    amount = float(value)
    for unit in _BYTES_UNITS[:-1]:
        if amount < 1024:  # noqa: PLR2004 - bytes in a KiB
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} {_BYTES_UNITS[-1]}"


def title(tag: str) -> str:
    """Return the name of a metric; of one that this version does not know, its tag."""
    metric = METRICS.get(tag)
    return metric.title if metric else tag


def in_order(tags: Mapping[str, object]) -> list[str]:
    """Return metric tags in the order of the registry, unknown ones last."""
    known = [tag for tag in METRICS if tag in tags]
    return known + [tag for tag in tags if tag not in METRICS]


def part(run: Run, name: str) -> Mapping[str, object]:
    """Return ``subject``, ``workload`` or ``measurement`` of the run's spec; empty where it is no table."""
    return table(run.spec.get(name))


def table(value: object) -> Mapping[str, object]:
    """Return a JSON value as a table; empty where it is none."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def slo_ms(run: Run) -> dict[str, float]:
    """Return the run's stated limits in milliseconds by metric tag; what is no limit states none."""
    stated = part(run, "measurement").get("slo")
    if isinstance(stated, str):
        try:
            limits: Mapping[str, object] = parse_slo(stated).limits_ns
        except InputError:
            return {}
    else:
        limits = table(table(stated).get("limits_ns", stated))
    return {tag: value / _NS_PER_MS for tag, value in limits.items() if isinstance(value, int | float)}


def verdict(run: Run) -> str:
    """Return the verdict of the whole run: client-bound when one load point is; ``–`` without load points."""
    verdicts = {load.summary.verdict.trust for load in run.loads}
    if not verdicts:
        return UNKNOWN
    return "client-bound" if "client-bound" in verdicts else "trusted"

from __future__ import annotations

import re
from pathlib import Path

from tokenweir.bench.records import verdict
from tokenweir.core.metrics.registry import METRICS
from tokenweir.studio import contrasts
from tokenweir.studio.conclusions import SPEED

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    return " ".join((DOCS / name).read_text(encoding="utf-8").split())


def test_definitions_are_those_of_the_format() -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+\| [^|]+ \| (.+) \|$", text, flags=re.MULTILINE))
    for tag, metric in METRICS.items():
        assert rows[tag] == metric.definition, tag


def test_every_metric_has_its_source() -> None:
    sources = page("metrics.md").partition("## Sources")[2]
    for tag in METRICS:
        assert f"`{tag}`" in sources, tag


def test_limits_are_those_of_the_code() -> None:
    text = page("metrics.md")
    for said in (
        f"{verdict.LAG_SHARE:.0%} of the median TTFT, at least {verdict.LAG_FLOOR_MS} ms, at most 1 ms",
        f"{verdict.LAG_SHARE:.0%} of the median E2EL, at least 1 ms",
        f"| {verdict.CPU_BUSY_MAX:.0%} of a core |",
        f"| gaps left out | {verdict.GAPS_EXCLUDED_MAX:.0%} |",
        f"| {verdict.USER_CLOCK_STREAMS} in flight |",
        f"| sent of scheduled requests, open loop | {verdict.SENT_MIN:.0%} |",
        f"| CPU time taken by the machine's host | {verdict.STEAL_MAX:.0%} |",
    ):
        assert said.replace("%", " %") in text, said


def test_comparison_says_what_the_code_does() -> None:
    text = page("comparison.md")
    for said in (
        f"at most {contrasts.BOOTSTRAP_PAIRS} pairs",
        f"fewer than {contrasts.LEAST_PAIRS} values",
        f"{contrasts.POWER:.0%} power".replace("%", " %"),
        ", ".join(f"p{percent}" for percent in contrasts.PERCENTS),
    ):
        assert said in text, said
    assert set(SPEED) <= set(METRICS)

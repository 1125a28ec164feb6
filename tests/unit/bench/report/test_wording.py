from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.factories.runs import RunShape, make_run

from tokenweir.bench.records.model import Number
from tokenweir.bench.report import wording
from tokenweir.core.requests import Json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("inf", "∞"),
        (0.0, "0"),
        (0.01234, "0.0123"),
        (0.1234, "0.123"),
        (12.345, "12.35"),
        (123.45, "123.5"),
        (12345.6, "12,346"),
    ],
)
def test_a_statistic_has_about_four_digits(value: Number, text: str) -> None:
    assert wording.statistic(value) == text


@pytest.mark.parametrize(
    ("ns", "text"), [(1_500_000_000, "1.5 s"), (150 * 10**9, "2 min 30 s"), (7260 * 10**9, "2 h 1 min")]
)
def test_durations(ns: int, text: str) -> None:
    assert wording.seconds(ns) == text


@pytest.mark.parametrize(
    ("stated", "limits"),
    [
        ({"ttft": 200_000_000}, {"ttft": 200.0}),
        ({"limits_ns": {"tpot": 25_000_000}}, {"tpot": 25.0}),
        ("ttft=200ms,tpot=25ms", {"tpot": 25.0, "ttft": 200.0}),
        ("nonsense", {}),
        (None, {}),
        ({}, {}),
    ],
)
def test_limits_are_read_however_they_are_written(
    tmp_path: Path, stated: Json, limits: dict[str, float]
) -> None:
    run = make_run(tmp_path, n=20, shape=RunShape(measurement={"slo": stated}))
    assert wording.slo_ms(run) == limits


def test_one_client_bound_load_point_makes_the_run_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=20, shape=RunShape(loads=("concurrency=1", "concurrency=2")))
    assert wording.verdict(run) == "trusted"
    bound = make_run(tmp_path / "b", n=20, shape=RunShape(client_bound=True)).loads[0]
    assert wording.verdict(msgspec.structs.replace(run, loads=(run.loads[0], bound))) == "client-bound"
    assert wording.verdict(msgspec.structs.replace(run, loads=())) == "–"

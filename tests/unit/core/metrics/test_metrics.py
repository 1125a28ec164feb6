from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.metrics.base import Totals
from tokenweir.core.metrics.objectives import meets
from tokenweir.core.metrics.registry import METRICS, needed
from tokenweir.core.slo import SLO_TAGS

NAN = math.nan


def columns(**values: float) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return {name: np.array([values.get(name, NAN)]) for name in needed()}


def value(tag: str, **values: float) -> float:
    return float(METRICS[tag].values(columns(**values))[0])


@given(st.sampled_from([metric for metric in METRICS.values() if metric.kind == "request"]), st.data())
def test_an_unknown_input_makes_an_unknown_value(metric: object, data: st.DataObject) -> None:
    tag = str(getattr(metric, "tag", ""))
    needs = METRICS[tag].needs
    missing = data.draw(st.sampled_from(needs))
    known = {name: 7.0 for name in needs if name != missing}
    assert math.isnan(value(tag, **known))


@given(st.sampled_from(sorted(METRICS)))
def test_metrics_read_only_what_they_say(tag: str) -> None:
    metric = METRICS[tag]
    if metric.kind == "request":
        assert len(metric.values({name: np.ones(3) for name in metric.needs})) == 3
    else:
        with pytest.raises(TypeError, match="no value per request"):
            metric.values({})


def test_formulas_by_hand() -> None:
    assert value("ttft", sent_ns=5, first_token_ns=12) == 7
    assert value("ttft_scheduled", scheduled_ns=2, first_token_ns=12) == 10
    assert value("e2el", sent_ns=5, end_ns=15) == 10
    assert value("e2el_scheduled", scheduled_ns=1, end_ns=15) == 14
    assert value("dispatch_lag", scheduled_ns=1, sent_ns=5) == 4
    assert value("ttft_error", true_first_ns=9, first_token_ns=12) == 3
    assert value("tpot", first_token_ns=10, last_token_ns=50, output_tokens=5) == 10
    assert value("tpot_from_start", sent_ns=0, last_token_ns=50, output_tokens=5) == 10
    assert value("interactivity", first_token_ns=0, last_token_ns=4e9, output_tokens=5) == 1
    assert (value("isl", input_tokens=3), value("osl", output_tokens=4)) == (3, 4)
    assert value("queue_time", server_queue_ns=9) == 9


@pytest.mark.parametrize("tokens", [0, 1, NAN])
def test_one_token_has_no_time_per_further_token(tokens: float) -> None:
    for tag in ("tpot", "interactivity"):
        assert math.isnan(value(tag, first_token_ns=10, last_token_ns=10, output_tokens=tokens))


def test_tokens_that_came_all_at_once_have_no_interactivity() -> None:
    assert math.isnan(value("interactivity", first_token_ns=10, last_token_ns=10, output_tokens=5))


def test_gaps_are_inter_token_where_each_chunk_is_a_token() -> None:
    assert value("itl_request", chunks=5, output_tokens=5, icl_mean_ns=7) == 7
    assert value("itl_request", chunks=5, output_tokens=6, icl_mean_ns=7) == 7
    for chunks in (3, 7):
        assert math.isnan(value("itl_request", chunks=chunks, output_tokens=6, icl_mean_ns=7))


def test_objectives() -> None:
    whole = {
        "sent_ns": 0.0,
        "first_token_ns": 10.0,
        "last_token_ns": 50.0,
        "output_tokens": 5.0,
        "end_ns": 55.0,
    }
    assert meets(columns(**whole), {"ttft": 10, "tpot": 10, "e2el": 55}).all()
    for slo in ({"ttft": 9}, {"tpot": 9}, {"e2el": 54}, {"ttft": 10, "e2el": 1}):
        assert not meets(columns(**whole), slo).any()
    single = {**whole, "output_tokens": 1.0, "chunks": 1.0}
    assert meets(columns(**single), {"tpot": 1, "itl_request": 1}).all()
    unknown = {**whole, "output_tokens": NAN}
    assert not meets(columns(**unknown), {"tpot": 1000}).any()
    assert not meets(columns(sent_ns=0), {"queue_time": 1000}).any()


def test_every_objective_is_a_duration_of_a_request() -> None:
    assert all(METRICS[tag].kind == "request" and METRICS[tag].unit == "ms" for tag in SLO_TAGS)


def test_rates() -> None:
    totals = Totals(
        window_s=2, completed=10, good=6, input_tokens=100, output_tokens=300, measured=8, failed=2
    )
    found = {tag: metric.rate(totals) for tag, metric in METRICS.items() if metric.rate}
    assert found == {
        "request_throughput": 5,
        "output_throughput": 150,
        "total_throughput": 200,
        "goodput": 3,
        "error_rate": 0.25,
    }
    empty = Totals(window_s=0, completed=0, good=0, input_tokens=0, output_tokens=0, measured=0, failed=0)
    assert all(math.isnan(metric.rate(empty)) for metric in METRICS.values() if metric.rate)

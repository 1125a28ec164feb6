from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from tests.factories.runs import rows

from tokenweir.bench.records.model import Reads, Window
from tokenweir.bench.records.summary import Conduct, LoadPoint, summarise
from tokenweir.bench.records.verdict import Evidence, judge, lag_limit_ms
from tokenweir.core.metrics.registry import METRICS
from tokenweir.core.stats.pool import Pool

MS = 1_000_000
S = 1_000_000_000
NAN = math.nan
WINDOW = Window(start_ns=0, end_ns=10 * S, trimmed=False)


def conduct(**changes: float) -> Conduct:
    return Conduct(
        worker=0, cpu_s=changes.get("cpu_s", 2.0), wall_s=10.0, rss_max_bytes=1000, timestamp_source="kernel"
    )


def load(**changes: object) -> LoadPoint:
    base: dict[str, object] = {
        "arrival": "poisson=1/s",
        "asked_rate": 1.0,
        "open_loop": True,
        "planned": 4,
        "window": WINDOW,
        "output_tokens_in_window": 30,
    }
    return LoadPoint(**{**base, **changes})  # pyright: ignore[reportArgumentType]


def four_requests(**changes: list[float] | list[str]) -> pa.Table:
    """Four requests, 1 s apart: two of 11 and 6 tokens, one of a single token, one that failed."""
    columns: dict[str, list[float] | list[str]] = {
        "scheduled_ns": [0.0, 1 * S, 2 * S, 3 * S],
        "sent_ns": [0.0, 1 * S, 2 * S + 20_000, 3 * S],
        "first_byte_ns": [0.1 * S, 1.2 * S, 2.3 * S, NAN],
        "first_token_ns": [0.1 * S, 1.2 * S, 2.3 * S, NAN],
        "last_token_ns": [1.1 * S, 1.7 * S, 2.3 * S, NAN],
        "end_ns": [1.2 * S, 1.8 * S, 11 * S, 3.5 * S],
        "output_tokens": [11.0, 6.0, 1.0, NAN],
        "input_tokens": [100.0, 200.0, 400.0, 800.0],
        "chunks": [10.0, 3.0, 1.0, 0.0],
        "reads": [11.0, 4.0, 2.0, 1.0],
        "gaps_excluded": [0.0, 0.0, 0.0, 0.0],
        "icl_mean_ns": [110 * MS, 250 * MS, NAN, NAN],
        "status": ["completed", "completed", "completed", "failed"],
        "error": ["", "", "", "timeout"],
        "phase": ["measured"] * 4,
        "token_source": ["server", "server", "estimate", ""],
    }
    return rows({**columns, **changes})


def test_each_metric_by_hand() -> None:
    pool = Pool()
    pool.add(np.array([100, 200, 300], np.int64) * MS)
    found = summarise(four_requests(), {"itl": pool}, [conduct()], load(slo={"ttft": 150 * MS}))
    metrics = found.metrics
    assert metrics["ttft"].n == 3
    assert metrics["ttft"].mean == pytest.approx((100 + 200 + 299.98) / 3)
    assert metrics["ttft"].p50 == pytest.approx(200)
    assert metrics["ttft_scheduled"].max == pytest.approx(300)
    assert metrics["dispatch_lag"].max == pytest.approx(0.02)
    assert (metrics["tpot"].n, metrics["tpot"].mean) == (2, pytest.approx(100))
    assert "1 completed requests have no value" in metrics["tpot"].note
    assert metrics["tpot_from_start"].min == pytest.approx(100)
    assert metrics["interactivity"].mean == pytest.approx(10)
    # Ten chunks for eleven tokens: the last had no text. Three for six: the gaps are no inter-token gaps.
    assert (metrics["itl_request"].n, metrics["itl_request"].mean) == (1, pytest.approx(110))
    assert (metrics["itl"].n, metrics["itl"].p50) == (3, pytest.approx(200))
    assert metrics["icl"].n == 0
    assert metrics["osl"].max == 11
    assert "token counts of 1 requests are estimates" in metrics["osl"].note
    # One request ended after the window.
    assert (metrics["request_throughput"].n, metrics["request_throughput"].mean) == (2, pytest.approx(0.2))
    assert metrics["output_throughput"].mean == pytest.approx(3.0)
    assert metrics["total_throughput"].mean == pytest.approx(33.0)
    assert metrics["goodput"].mean == pytest.approx(0.1)
    assert metrics["error_rate"].mean == pytest.approx(0.25)
    assert metrics["queue_time"].note == "the server does not report it"
    assert "ttft_error" not in metrics
    assert all(METRICS[tag].definition == summary.definition for tag, summary in metrics.items())


def test_counts_reads_and_delivered() -> None:
    found = summarise(four_requests(), {}, [conduct(), conduct()], load())
    assert found.counts.errors == {"timeout": 1}
    assert (found.counts.sent, found.counts.completed, found.counts.failed) == (4, 3, 1)
    assert (found.reads.reads, found.reads.chunks, found.reads.gaps) == (17, 14, 11)
    assert found.delivered.rate == pytest.approx(0.4)
    assert found.delivered.in_flight_mean == pytest.approx((1.2 + 0.8 + 7.99998 + 0.5) / 10)
    assert found.delivered.in_flight_max == 2
    assert found.client.cpu_s == pytest.approx(4)
    assert found.client.cpu_busy_max == pytest.approx(0.2)
    assert found.verdict.trust == "trusted"
    assert found.metrics["goodput"].note == "no SLO is stated"


def test_failures_count_as_infinite_where_asked() -> None:
    found = summarise(four_requests(), {}, [conduct()], load(failures_as_infinite=True)).metrics
    assert (found["ttft"].n, found["ttft"].max, found["ttft"].mean) == (4, "inf", "inf")
    assert found["ttft"].p50 == pytest.approx((200 + 299.98) / 2)
    assert found["interactivity"].min == 0
    assert found["dispatch_lag"].n == 3
    assert "1 failed requests count as inf" in found["ttft"].note


def test_a_failure_has_no_value_that_no_completed_request_has() -> None:
    whole = four_requests(first_token_ns=[NAN] * 4, last_token_ns=[NAN] * 4, icl_mean_ns=[NAN] * 4)
    found = summarise(whole, {}, [conduct()], load(failures_as_infinite=True)).metrics
    assert found["e2el"].max == "inf"
    assert [found[tag].n for tag in ("ttft", "tpot", "itl_request", "interactivity")] == [0] * 4


def test_only_the_measured_phase_has_latencies() -> None:
    phases = ["warmup", "measured", "recompiled", "cooldown"]
    found = summarise(four_requests(phase=phases), {}, [conduct()], load())
    assert found.metrics["ttft"].n == 1
    counts = found.counts
    assert (counts.trimmed_warmup, counts.measured, counts.recompiled, counts.trimmed_cooldown) == (
        1,
        1,
        1,
        1,
    )
    # Completions inside the window count whatever their phase.
    assert found.metrics["request_throughput"].n == 2


def test_a_load_without_rows_is_not_trusted() -> None:
    window = Window(start_ns=0, end_ns=0, trimmed=False)
    found = summarise(four_requests().slice(0, 0), {}, [], load(window=window))
    assert found.metrics["ttft"].p50 is None
    assert found.metrics["request_throughput"].mean is None
    assert found.verdict.reasons[0] == "no request was measured"


def test_percentiles_of_a_capped_pool_say_so() -> None:
    pool = Pool(cap=2)
    pool.add(np.array([1, 2, 3], np.int64) * MS)
    found = summarise(four_requests(), {"itl": pool}, [conduct()], load()).metrics["itl"]
    assert "log-linear histogram at most 0.1 % wide" in found.note
    assert (found.min, found.max) == (1, 3)


def evidence(changes: Mapping[str, object]) -> Evidence:
    base: dict[str, object] = {
        "workers": 1,
        "timestamp_source": "kernel",
        "dispatch_lag_p50_ms": 0.01,
        "dispatch_lag_p99_ms": 0.05,
        "dispatch_lag_max_ms": 0.2,
        "cpu_s": 1.0,
        "capture_cpu_s": 0.8,
        "cpu_busy_max": 0.5,
        "rss_max_bytes": 1,
        "clock_steps": 0,
        "steal_ratio": None,
        "open_loop": True,
        "scheduled": 100,
        "sent": 100,
        "in_flight_max": 10,
        "measured": 100,
        "ttft_p50_ms": 60.0,
        "e2el_p50_ms": 900.0,
    }
    return Evidence(**{**base, **changes})  # pyright: ignore[reportArgumentType]


def reads(excluded: int = 0) -> Reads:
    return Reads(reads=1000, chunks=1000, multi_event_reads=excluded, gaps=1000, gaps_excluded=excluded)


@pytest.mark.parametrize(
    ("changes", "excluded", "reason"),
    [
        ({"dispatch_lag_p99_ms": 1.01}, 0, "dispatch lag p99"),
        ({"dispatch_lag_p99_ms": 0.2, "ttft_p50_ms": 3.0}, 0, "dispatch lag p99"),
        ({"dispatch_lag_p99_ms": 50.0, "open_loop": False}, 0, "dispatch lag p99"),
        ({"cpu_busy_max": 0.95}, 0, "busiest worker"),
        ({}, 10, "of the gaps touch"),
        ({"timestamp_source": "user", "in_flight_max": 300}, 0, "user-space"),
        ({"clock_steps": 1}, 0, "stepped"),
        ({"sent": 94}, 0, "94 of 100"),
        ({"steal_ratio": 0.2}, 0, "host took"),
        ({"measured": 0}, 0, "no request"),
    ],
)
def test_each_reason_binds_a_run_to_the_client(
    changes: dict[str, object], excluded: int, reason: str
) -> None:
    found = judge(evidence(changes), reads(excluded))
    assert found.trust == "client-bound"
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


@pytest.mark.parametrize(
    ("changes", "excluded"),
    [
        ({}, 0),
        ({}, 9),
        ({"dispatch_lag_p99_ms": 0.09, "ttft_p50_ms": 0.5}, 0),
        ({"dispatch_lag_p99_ms": 40.0, "open_loop": False}, 0),
        ({"timestamp_source": "user"}, 0),
        ({"open_loop": False, "sent": 50}, 0),
        ({"dispatch_lag_p99_ms": None, "ttft_p50_ms": None}, 0),
    ],
)
def test_a_good_run_is_trusted_with_reasons(changes: dict[str, object], excluded: int) -> None:
    found = judge(evidence(changes), reads(excluded))
    assert found.trust == "trusted"
    assert found.reasons


def test_the_lag_limit_follows_the_server() -> None:
    assert lag_limit_ms(evidence({"ttft_p50_ms": 0.1})) == 0.1
    assert lag_limit_ms(evidence({"ttft_p50_ms": 10.0})) == pytest.approx(0.5)
    assert lag_limit_ms(evidence({"ttft_p50_ms": 1000.0})) == 1.0
    assert lag_limit_ms(evidence({"ttft_p50_ms": None})) == 1.0
    assert lag_limit_ms(evidence({"open_loop": False, "e2el_p50_ms": None})) == 1.0


def test_large_tables_sum_up_like_small_ones() -> None:
    many = pa.concat_tables([four_requests()] * 50)
    found = summarise(many, {}, [conduct()], load())
    assert found.metrics["ttft"].n == 150
    assert found.counts.errors == {"timeout": 50}
    values: npt.NDArray[np.float64] = np.repeat([100, 200, 299.98], 50)
    assert found.metrics["ttft"].p90 == pytest.approx(float(np.percentile(values, 90)))

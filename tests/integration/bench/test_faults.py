"""Whatever goes wrong with an answer is on record under its kind, and never counted as completed."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.integration.bench.bench import measured, simulator

from tokenweir.core.errors import EndpointError, NoResultError, OverloadedError, RefusedError, UpstreamError
from tokenweir.sim.process import SimProcess

REQUESTS = 9
FAULTY = 3


@pytest.fixture(scope="module")
def sim() -> Iterator[SimProcess]:
    with simulator() as one:
        yield one


@pytest.mark.parametrize(
    ("fault", "kind", "status", "chunks"),
    [
        ("429;retry-after=2", "overloaded", 429, 0),
        ("503", "overloaded", 503, 0),
        ("500", "upstream", 500, 0),
        ("401", "refused", 401, 0),
        ("stall;after=2;for=60s", "timeout", 200, 2),
        ("slow-headers;for=60s", "timeout", None, 0),
        ("disconnect;after=2", "disconnected", 200, 2),
        ("reset;after=2", "disconnected", 200, 2),
        ("malformed;after=2", "protocol", 200, 2),
        ("error;after=2", "upstream", 200, 2),
        ("no-finish", "protocol", 200, 5),
        ("not-sse", "protocol", 200, 0),
    ],
)
def test_a_fault_has_its_kind_and_is_not_completed(
    tmp_path: Path, sim: SimProcess, fault: str, kind: str, status: int | None, chunks: int
) -> None:
    sim.reset()
    sim.flags(faults=(f"{fault}@every=3",))
    record = measured(
        sim.url, tmp_path / "run", requests=REQUESTS, arrival="concurrency=3", timeout="400ms", scenario="D(5,5)",
        max_tokens=None,
    )  # fmt: skip
    assert record.by("status") == {"completed": REQUESTS - FAULTY, "failed": FAULTY}
    failed = [row for row in record.rows if row["status"] == "failed"]
    assert {(row["error"], row["http_status"]) for row in failed} == {(kind, status)}
    assert {row["chunks"] for row in failed} == {chunks}
    counts = record.run["summary"]["counts"]
    assert (counts["completed"], counts["failed"]) == (REQUESTS - FAULTY, FAULTY)
    assert counts["errors"] == {kind: FAULTY}
    metrics = record.run["summary"]["metrics"]
    assert metrics["ttft"]["n"] == metrics["e2el"]["n"] == REQUESTS - FAULTY
    assert metrics["error_rate"]["mean"] == pytest.approx(FAULTY / REQUESTS)
    assert record.failure is None


@pytest.mark.parametrize("fault", ["no-done", "content-type;value=text/plain", "stall;after=2;for=20ms"])
def test_what_is_only_unusual_completes(tmp_path: Path, sim: SimProcess, fault: str) -> None:
    sim.reset()
    sim.flags(faults=(fault,))
    record = measured(sim.url, tmp_path / "run", requests=4, scenario="D(5,5)", max_tokens=None)
    assert record.by("status") == {"completed": 4}
    assert record.by("chunks") == {5: 4}


def test_a_servers_own_count_is_believed(tmp_path: Path, sim: SimProcess) -> None:
    sim.reset()
    sim.flags(faults=("wrong-usage;factor=3",))
    record = measured(sim.url, tmp_path / "run", requests=4, scenario="D(5,5)", max_tokens=None)
    assert record.by("output_tokens") == {15: 4}
    assert record.by("chunks") == {5: 4}


def test_a_server_that_closes_without_an_answer_has_failed_the_request(
    tmp_path: Path, sim: SimProcess
) -> None:
    sim.reset()
    sim.flags(faults=("close@every=4",))
    record = measured(sim.url, tmp_path / "run", requests=12, arrival="concurrency=2")
    failed = record.by("error").get("disconnected", 0)
    retried = "sent again" in record.notes
    assert failed or retried
    assert record.by("status").get("completed", 0) == 12 - failed
    assert int(str(sim.truth()["requests"])) >= 12


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429;retry-after=2", OverloadedError),
        ("500", UpstreamError),
        ("403", RefusedError),
        ("stall;after=0;for=60s", NoResultError),
    ],
)
def test_a_run_without_one_completed_request_is_an_error_with_its_kind(
    tmp_path: Path, sim: SimProcess, fault: str, error: type[EndpointError]
) -> None:
    sim.reset()
    sim.flags(faults=(fault,))
    record = measured(sim.url, tmp_path / "run", requests=4, arrival="concurrency=4", timeout="300ms")
    assert isinstance(record.failure, error)
    assert "4 ×" in str(record.failure)
    assert record.by("status") == {"failed": 4}
    assert record.run["summary"]["metrics"]["ttft"]["p50"] is None


def test_a_request_that_times_out_is_in_flight_until_then(tmp_path: Path, sim: SimProcess) -> None:
    sim.reset()
    sim.flags(faults=("stall;after=1;for=60s",))
    record = measured(sim.url, tmp_path / "run", requests=6, arrival="concurrency=2", timeout="300ms")
    assert record.by("error") == {"timeout": 6}
    # The window ends as the last pair is sent, and until then both slots are nearly always taken.
    assert record.run["summary"]["delivered"]["in_flight_mean"] > 1.5
    series = pq.read_table(record.run_dir / "series.parquet").to_pylist()
    assert sum(row["count"] for row in series if row["metric"] == "failed") == 6


def test_failures_may_count_as_infinite(tmp_path: Path, sim: SimProcess) -> None:
    sim.reset()
    sim.flags(faults=("500@every=4",))
    record = measured(sim.url, tmp_path / "run", requests=8, failures_as_infinite=True)
    ttft = record.run["summary"]["metrics"]["ttft"]
    assert ttft["n"] == 8
    assert ttft["max"] == "inf"
    assert ttft["p50"] < 1000


def test_faults_of_whole_answers(tmp_path: Path, sim: SimProcess) -> None:
    sim.reset()
    sim.flags(faults=("not-sse@#1", "error@#2", "500@#3", "disconnect@#4"))
    record = measured(sim.url, tmp_path / "run", requests=6, stream=False)
    assert record.by("status") == {"completed": 2, "failed": 4}
    assert set(record.by("error")) <= {None, "protocol", "upstream", "disconnected"}

"""Whole runs against the simulator: what was asked is what is on record."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.integration.bench.bench import Record, Row, measured, simulator

from tokenweir.bench import measure, prepare
from tokenweir.core.errors import WeirError
from tokenweir.sim.process import SimProcess

US = 1_000


@pytest.fixture(scope="module")
def sim() -> Iterator[SimProcess]:
    with simulator() as one:
        yield one


@pytest.fixture(autouse=True)
def fresh(sim: SimProcess) -> None:
    sim.reset()


def metric(record: Record, tag: str) -> dict[str, float]:
    return record.run["summary"]["metrics"][tag]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("arrival", ["concurrency=3", "constant=200/s", "poisson=300/s"])
def test_every_request_is_asked_once(tmp_path: Path, sim: SimProcess, arrival: str, workers: int) -> None:
    record = measured(sim.url, tmp_path / "run", requests=25, arrival=arrival, workers=workers)
    assert sim.truth()["requests"] == 25
    assert record.run["status"] == "completed"
    assert [row["request"] for row in record.rows] == list(range(25))
    assert record.by("status") == {"completed": 25}
    assert set(record.by("worker")) == set(range(workers))
    assert len({(row["sample"], row["repeat"]) for row in record.rows}) == 25
    counts = record.run["summary"]["counts"]
    assert (counts["sent"], counts["completed"], counts["failed"], counts["measured"]) == (25, 25, 0, 25)
    check_chunks(record)


def check_chunks(record: Record) -> None:
    """Check the chunk table against the rows it belongs to."""
    of: dict[tuple[int, int], list[Row]] = {}
    for chunk in record.chunks:
        of.setdefault((chunk["load"], chunk["request"]), []).append(chunk)
    for row in record.rows:
        chunks = of.get((row["load"], row["request"]), [])
        assert [chunk["index"] for chunk in chunks] == list(range(row["chunks"]))
        assert row["output_tokens"] == row["chunks"] == 5
        assert row["token_source"] == "server"
        assert chunks[0]["received_ns"] == row["first_token_ns"]
        assert chunks[-1]["received_ns"] == row["last_token_ns"]
        assert chunks[0]["true_sent_ns"] == row["true_first_ns"]
        gaps = [
            later["received_ns"] - earlier["received_ns"]
            for earlier, later in pairwise(chunks)
            if not (earlier["shared_read"] or later["shared_read"])
        ]
        assert row["gaps_excluded"] == len(chunks) - 1 - len(gaps)
        assert row["icl_max_ns"] == (max(gaps) if gaps else None)
        assert row["icl_mean_ns"] == (sum(gaps) // len(gaps) if gaps else None)


@pytest.mark.parametrize("portable", [False, True])
def test_what_is_received_was_sent_before_and_not_long_before(
    tmp_path: Path, sim: SimProcess, *, portable: bool
) -> None:
    record = measured(sim.url, tmp_path / "run", requests=30, arrival="concurrency=2", portable=portable)
    delays = sorted(chunk["received_ns"] - chunk["true_sent_ns"] for chunk in record.chunks)
    assert delays[0] > -200 * US
    assert delays[len(delays) // 2] < 20_000 * US
    error = metric(record, "ttft_error")
    assert error["n"] == 30
    assert error["p50"] < 20


def known(record: Record) -> list[set[str]]:
    """Which columns of each row have a value; whether there is a gap depends on how reads fall together."""
    return [
        {name for name, value in row.items() if value is not None and not name.startswith("icl_")}
        for row in record.rows
    ]


def test_user_space_stamps_give_the_same_record_and_say_so(tmp_path: Path, sim: SimProcess) -> None:
    kernel = measured(sim.url, tmp_path / "kernel", requests=10)
    user = measured(sim.url, tmp_path / "user", requests=10, portable=True)
    assert user.run["summary"]["client"]["timestamp_source"] == "user"
    assert "user space" in user.notes
    assert user.by("status") == kernel.by("status")
    assert known(user) == known(kernel)
    assert [row["answer_hash"] for row in user.rows] == [row["answer_hash"] for row in kernel.rows]
    check_chunks(user)


def test_a_sweep_is_one_record_with_a_load_point_each(tmp_path: Path, sim: SimProcess) -> None:
    record = measured(
        sim.url,
        tmp_path / "run",
        requests=12,
        arrival="concurrency=1,concurrency=3,constant=100/s",
        workers=2,
    )
    assert [load["index"] for load in record.run["loads"]] == [0, 1, 2]
    assert [load["summary"]["counts"]["completed"] for load in record.run["loads"]] == [12, 12, 12]
    assert record.run["summary"] is None
    assert [row["request"] for row in record.rows] == list(range(36))
    assert [row["load"] for row in record.rows] == [0] * 12 + [1] * 12 + [2] * 12
    starts = [min(row["sent_ns"] for row in record.rows if row["load"] == load) for load in range(3)]
    ends = [max(row["end_ns"] for row in record.rows if row["load"] == load) for load in range(3)]
    assert starts[0] >= 0
    assert starts[1] > ends[0]
    assert starts[2] > ends[1]
    check_chunks(record)
    assert sim.truth()["requests"] == 36


def test_a_closed_loop_bounded_by_time_cycles_through_its_list(
    tmp_path: Path, sim: SimProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_LIST_ROWS", 3)
    corpus = tmp_path / "three.txt"
    corpus.write_text("one\ntwo\nthree\n")
    record = measured(
        sim.url,
        tmp_path / "run",
        duration="400ms",
        arrival="concurrency=2,concurrency=3",
        workers=2,
        corpus=str(corpus),
        max_tokens=1,
        stream=False,
    )
    numbers = [row["request"] for row in record.rows]
    assert len(set(numbers)) == len(numbers) > 40
    for load in range(2):
        rows = [row for row in record.rows if row["load"] == load]
        pairs = [(row["sample"], row["repeat"]) for row in rows]
        assert len(set(pairs)) == len(pairs)
        assert {row["sample"] for row in rows} == {0, 1, 2}
        # Two answers that came at once are taken in either order; those over one connection follow one another.
        for sender in {(row["worker"], row["connection"]) for row in rows}:
            mine = [row for row in rows if (row["worker"], row["connection"]) == sender]
            by_time = sorted(mine, key=lambda row: row["scheduled_ns"])
            assert [row["request"] for row in by_time] == sorted(row["request"] for row in mine)
        start = min(row["scheduled_ns"] for row in rows)
        assert max(row["sent_ns"] for row in rows) - start < 1_000_000 * US
    assert record.by("status") == {"completed": len(numbers)}
    assert sim.truth()["requests"] == len(numbers)


def test_warm_up_and_cool_down_by_number(tmp_path: Path, sim: SimProcess) -> None:
    record = measured(
        sim.url, tmp_path / "run", requests=20, warmup="4", cooldown="3", arrival="concurrency=2"
    )
    assert record.by("phase") == {"warmup": 4, "measured": 13, "cooldown": 3}
    order = [row["phase"] for row in sorted(record.rows, key=lambda row: row["sent_ns"])]
    assert order == ["warmup"] * 4 + ["measured"] * 13 + ["cooldown"] * 3
    assert metric(record, "ttft")["n"] == 13
    assert record.run["summary"]["window"]["trimmed"]


def test_warm_up_and_cool_down_by_time(tmp_path: Path, sim: SimProcess) -> None:
    record = measured(
        sim.url,
        tmp_path / "run",
        duration="600ms",
        warmup="200ms",
        cooldown="100ms",
        arrival="constant=100/s",
    )
    window = record.run["summary"]["window"]
    assert len(record.rows) == 60
    assert set(record.by("phase")) == {"warmup", "measured", "cooldown"}
    for row in record.rows:
        inside = window["start_ns"] <= row["sent_ns"] < window["end_ns"]
        assert (row["phase"] == "measured") == inside


def test_whole_answers(tmp_path: Path, sim: SimProcess) -> None:
    record = measured(sim.url, tmp_path / "run", requests=10, stream=False)
    assert record.by("status") == {"completed": 10}
    for row in record.rows:
        assert (row["chunks"], row["first_token_ns"], row["true_first_ns"]) == (0, None, None)
        assert (row["output_tokens"], row["token_source"]) == (5, "server")
        assert row["answer_hash"] is not None
    assert record.chunks == []
    assert metric(record, "e2el")["n"] == 10
    assert metric(record, "ttft")["n"] == 0
    assert metric(record, "output_throughput")["mean"] > 0


def test_embeddings(tmp_path: Path, sim: SimProcess) -> None:
    record = measured(sim.url, tmp_path / "run", requests=10, scenario="E(20)", max_tokens=None)
    assert record.run["spec"]["workload"]["kind"] == "embedding"
    assert record.by("status") == {"completed": 10}
    assert all(row["input_tokens"] and row["end_ns"] and not row["chunks"] for row in record.rows)


def test_chunks_of_several_tokens_are_no_inter_token_gaps(tmp_path: Path) -> None:
    with simulator(tokens_per_chunk="constant:2") as several:
        record = measured(several.url, tmp_path / "run", requests=10, scenario="D(9,8)", max_tokens=None)
    assert record.by("output_tokens") == {8: 10}
    assert record.by("chunks") == {4: 10}
    assert metric(record, "itl")["n"] == 0
    assert metric(record, "icl")["n"] > 0
    assert "ICL and not in ITL" in record.notes


def test_labels_and_hashes_and_files_are_in_the_record(tmp_path: Path, sim: SimProcess) -> None:
    record = measured(sim.url, tmp_path / "run", requests=4, label={"a": "b"})
    assert record.run["labels"] == {"a": "b"}
    provenance = record.run["provenance"]
    assert provenance["model"] == "sim"
    for name in ("config_hash", "workload_hash", "measurement_hash"):
        assert len(provenance[name]) == 64
    assert set(record.run["files"]) == {"requests.parquet", "chunks.parquet", "series.parquet"}
    assert "</html>" in (record.run_dir / "report.html").read_text()


def test_an_open_loop_whose_time_holds_no_arrival_says_so(tmp_path: Path, sim: SimProcess) -> None:
    with pytest.raises(WeirError) as caught:
        measured(sim.url, tmp_path / "run", arrival="poisson=0.01/s", duration="1ms")
    assert caught.value.exit_code in {2, 7}
    assert caught.value.mend
    assert not (tmp_path / "run" / "work").exists()


def test_more_workers_than_requests_are_no_trouble(tmp_path: Path, sim: SimProcess) -> None:
    record = measured(sim.url, tmp_path / "run", requests=1, arrival="concurrency=8", workers=4)
    assert record.by("status") == {"completed": 1}


def test_a_load_point_that_finds_no_room_keeps_those_before_it(
    tmp_path: Path, sim: SimProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = measure.prepare

    def prepare_once(folder: Path, point: prepare.LoadPoint, *rest: Any) -> prepare.Prepared:  # noqa: ANN401
        if point.load:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return honest(folder, point, *rest)

    monkeypatch.setattr(measure, "prepare", prepare_once)
    record = measured(sim.url, tmp_path / "run", requests=5, arrival="concurrency=1,concurrency=2")
    assert record.by("load") == {0: 5}
    assert record.run["status"] == "failed"
    assert record.failure is not None
    assert record.failure.exit_code == 6

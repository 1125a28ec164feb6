"""Ctrl-C, kills, and what is left on disk and in the process table."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.bench.bench import read_record, simulator
from tests.integration.bench.processes import bench

from tokenweir.sim.process import SimProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

CANCELLED = 130
LONG = ("--duration", "60s", "--arrival", "concurrency=4", "--max-tokens", "8", "--workers", "2")


@pytest.fixture
def sim() -> Iterator[SimProcess]:
    with simulator() as one:
        yield one


def served(sim: SimProcess, count: int) -> bool:
    return int(str(sim.truth()["requests"])) >= count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_keeps_what_was_measured(tmp_path: Path, sim: SimProcess, number: signal.Signals) -> None:
    with bench(sim.url, tmp_path / "run", *LONG) as running:
        running.until(lambda: served(sim, 20))
        assert len(running.workers()) == 2
        running.process.send_signal(number)
        assert running.wait() == CANCELLED, running.log.read_text()
        assert running.gone()
    record = read_record(tmp_path / "run")
    assert record.run["status"] == "cancelled"
    statuses = record.by("status")
    assert statuses["completed"] >= 12
    assert set(statuses) == {"completed", "cancelled"}
    assert statuses["cancelled"] <= 4
    assert record.run["summary"]["counts"]["completed"] == statuses["completed"]
    assert "Traceback" not in running.log.read_text()


def test_a_signal_to_the_whole_group_as_a_terminal_sends_it(tmp_path: Path, sim: SimProcess) -> None:
    with bench(sim.url, tmp_path / "run", *LONG) as running:
        running.until(lambda: served(sim, 8))
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.wait() == CANCELLED, running.log.read_text()
    assert read_record(tmp_path / "run").by("status")["completed"] >= 4


def test_two_signals_stop_at_once(tmp_path: Path) -> None:
    with (
        simulator(itl="constant:20s") as slow,
        bench(slow.url, tmp_path / "run", *LONG) as running,
    ):
        running.until(lambda: sum(figures.in_flight for figures in running.figures()) == 4)
        # One right after the other: the first is taken up by the second poll at the latest.
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == CANCELLED, running.log.read_text()
        assert running.gone()
    assert "Traceback" not in running.log.read_text()


def test_a_signal_before_the_first_arrival_leaves_an_empty_record(tmp_path: Path, sim: SimProcess) -> None:
    late = ("--arrival", "normal(30s,1ms)", "--duration", "300s", "--workers", "1")
    with bench(sim.url, tmp_path / "run", *late) as running:
        running.until((tmp_path / "run/work/load-0/worker-0/live.bin").exists)
        running.until((tmp_path / "run/work/load-0/worker-0/finish-plan.json").exists)
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == CANCELLED, running.log.read_text()
    record = read_record(tmp_path / "run")
    assert record.run["status"] == "cancelled"
    assert record.rows == []


def test_a_signal_in_a_sweep_ends_the_sweep(tmp_path: Path, sim: SimProcess) -> None:
    sweep = ("--duration", "20s", "--arrival", "concurrency=1,concurrency=2", "--max-tokens", "2")
    with bench(sim.url, tmp_path / "run", *sweep) as running:
        running.until(lambda: served(sim, 5))
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == CANCELLED, running.log.read_text()
    record = read_record(tmp_path / "run")
    assert [load["status"] for load in record.run["loads"]] == ["cancelled"]


@pytest.mark.parametrize("victim", ["worker", "finisher"])
def test_a_process_of_the_run_that_is_killed_leaves_what_it_had_written(
    tmp_path: Path, sim: SimProcess, victim: str
) -> None:
    name = "engine.worker" if victim == "worker" else "finishing.process"
    short = ("--duration", "8s", "--arrival", "concurrency=4", "--max-tokens", "8", "--workers", "2")
    with bench(sim.url, tmp_path / "run", *short) as running:
        running.until((tmp_path / "run/work/load-0/worker-1/rows.i64").exists)
        rows = tmp_path / "run/work/load-0/worker-0/rows.i64"
        running.until(lambda: rows.exists() and rows.stat().st_size > 0)
        pids = [
            pid
            for pid in running.everyone()
            if name in (line := Path(f"/proc/{pid}/cmdline").read_text()) and "worker-0" in line
        ]
        assert len(pids) == 1
        os.kill(pids[0], signal.SIGKILL)
        code = running.wait()
        assert running.gone()
    text = running.log.read_text()
    assert "Traceback" not in text
    assert code not in {0, CANCELLED}, text
    record = read_record(tmp_path / "run")
    assert record.run["status"] == "failed"
    assert record.by("worker")[0] > 0
    assert record.by("worker")[1] > 0
    assert record.by("status")["completed"] > 0
    assert "kill" in record.notes or "died" in record.notes or "ended" in record.notes


def test_workers_do_not_outlive_their_parent(tmp_path: Path, sim: SimProcess) -> None:
    with bench(sim.url, tmp_path / "run", *LONG) as running:
        running.until(lambda: served(sim, 8))
        assert len(running.workers()) == 2
        running.process.kill()
        running.wait()
        assert running.gone()


def test_what_is_captured_is_worked_off_while_the_run_goes_on(tmp_path: Path, sim: SimProcess) -> None:
    work = tmp_path / "run/work/load-0"
    with bench(sim.url, tmp_path / "run", *LONG) as running:
        rows = [work / f"worker-{worker}/rows.i64" for worker in range(2)]
        running.until(lambda: all(path.exists() and path.stat().st_size > 10_000 for path in rows))
        names = [path.name for path in work.rglob("*") if path.is_file()]
        running.process.send_signal(signal.SIGINT)
        running.wait()
    # Segments go as they are reduced, and the requests' bytes, which hold the key, have no name.
    assert sum(name.endswith(".seg") for name in names) <= 4
    assert all(not name.startswith("tmp") for name in names)

"""Ctrl-C keeps what was measured; a second one stops at once."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.e2e.running import started

CANCELLED = 130
DEADLINE_S = 30.0


def served(url: str, count_of: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request("GET", "/sim/truth")
    count: int = json.loads(connection.getresponse().read())[count_of]
    connection.close()
    return count


def wait_until(url: str, count_of: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while served(url, count_of) < count:
        assert process.poll() is None, "the run ended before it was interrupted"
        assert time.monotonic() < deadline, "the run served nothing"
        time.sleep(0.02)


def arguments(url: str, out: Path) -> tuple[str, ...]:
    load = ("--duration", "60s", "--arrival", "concurrency=4", "--max-tokens", "8")
    return ("bench", url, "--model", "sim", "--backend", "sim", "--out", str(out), *load)


def test_ctrl_c_keeps_what_was_measured_and_marks_the_run(tmp_path: Path, simulator: str) -> None:
    log = tmp_path / "log"
    with started(*arguments(simulator, tmp_path / "runs"), log=log) as process:
        wait_until(simulator, "requests", 8, process)
        process.send_signal(signal.SIGINT)
        code = process.wait(DEADLINE_S)
    assert code == CANCELLED, log.read_text()
    (record,) = (tmp_path / "runs").rglob("run.json")
    run: dict[str, Any] = json.loads(record.read_text())
    assert run["status"] == "cancelled"
    assert run["summary"]["counts"]["completed"] >= 8
    assert (record.parent / "requests.parquet").exists()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, slow_simulator: str) -> None:
    log = tmp_path / "log"
    with started(*arguments(slow_simulator, tmp_path / "runs"), log=log) as process:
        wait_until(slow_simulator, "received", 1, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(DEADLINE_S)
    assert time.monotonic() - asked < 3
    assert code != 0, log.read_text()

"""The endpoint's key goes over the wire, and nowhere else."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from tests.integration.bench.bench import read_record, simulator
from tests.integration.bench.processes import bench, weir

KEY = "sk-4f1cd0a9b7e34c28a5d6-not-to-be-found"


def holders(folder: Path, secret: bytes) -> list[Path]:
    """The files below ``folder`` that hold ``secret``."""
    found: list[Path] = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and secret in path.read_bytes():
                found.append(path)
        except FileNotFoundError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_key_is_in_no_file_command_line_or_log(tmp_path: Path) -> None:
    temp = tmp_path / "tmp"
    temp.mkdir()
    env = {"THE_KEY": KEY, "TMPDIR": str(temp)}
    load = ("--duration", "30s", "--arrival", "concurrency=3", "--max-tokens", "4", "--key", "env:THE_KEY")
    with simulator(api_key=KEY) as sim, bench(sim.url, tmp_path / "run", *load, env=env) as running:
        for _ in range(5):
            before = int(str(sim.truth()["requests"]))
            running.until(lambda: int(str(sim.truth()["requests"])) > before + 20)  # noqa: B023 - used at once
            assert holders(tmp_path, KEY.encode()) == []
        lines = [
            Path(f"/proc/{pid}/cmdline").read_text() for pid in [running.process.pid, *running.everyone()]
        ]
        assert len(lines) >= 3
        assert not any(KEY in line for line in lines)
        running.process.send_signal(signal.SIGINT)
        running.wait()
        assert holders(tmp_path, KEY.encode()) == []
    record = read_record(tmp_path / "run")
    assert record.by("status")["completed"] > 20
    assert list(temp.iterdir()) == []


def test_a_refused_key_is_not_repeated(tmp_path: Path) -> None:
    with simulator(api_key="another-key") as sim:
        ended = weir(
            "--log-level", "debug", "bench", sim.url, "--backend", "sim", "--out", str(tmp_path / "run"),
            "--key", "env:THE_KEY", env={"THE_KEY": KEY},
        )  # fmt: skip
    assert ended.returncode == 5
    assert KEY not in ended.stdout + ended.stderr
    assert "--key" in ended.stderr


def test_a_key_itself_is_refused_without_being_repeated(tmp_path: Path) -> None:
    ended = weir("bench", "http://127.0.0.1:1", "--out", str(tmp_path / "run"), "--key", KEY)
    assert ended.returncode == 2
    assert KEY not in ended.stdout + ended.stderr


def test_credentials_in_the_url_are_not_kept(tmp_path: Path) -> None:
    with simulator() as sim:
        url = sim.url.replace("http://", f"http://user:{KEY}@")
        ended = weir("bench", url, "--backend", "sim", "--out", str(tmp_path / "run"), "--requests", "3")
    assert KEY not in ended.stdout + ended.stderr
    assert holders(tmp_path, KEY.encode()) == []


def test_the_value_of_a_header_is_not_kept(tmp_path: Path) -> None:
    with simulator() as sim:
        ended = weir(
            "bench", sim.url, "--backend", "sim", "--out", str(tmp_path / "run"), "--requests", "3",
            "--header", f"x-api-key={KEY}",
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert KEY not in ended.stdout + ended.stderr
    assert holders(tmp_path, KEY.encode()) == []

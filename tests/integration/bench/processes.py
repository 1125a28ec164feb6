"""``weir bench`` as a process of its own, and the processes it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tokenweir.bench.engine.live import LiveFigures, read_live

PATIENCE_S = 30.0


def weir(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``weir`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tokenweir", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=None if env is None else {**os.environ, **env},  # noqa: TID251
    )


class Running:
    """A ``weir bench`` under way in a run directory."""

    def __init__(self, process: subprocess.Popen[str], run_dir: Path, log: Path) -> None:
        self.process = process
        self.run_dir = run_dir
        self.log = log

    def wait(self) -> int:
        """Return the exit code."""
        return self.process.wait(PATIENCE_S)

    def workers(self) -> list[int]:
        """The capturing processes of this run."""
        return processes_with(str(self.run_dir), "bench.engine.worker")

    def everyone(self) -> list[int]:
        """All processes this run started, by what their command lines name."""
        return [pid for pid in processes_with(str(self.run_dir)) if pid != self.process.pid]

    def figures(self) -> list[LiveFigures]:
        """What each worker says of itself."""
        found = [read_live(path) for path in (self.run_dir / "work").rglob("live.bin")]
        return [one for one in found if one is not None]

    def until(self, true: Callable[[], object]) -> None:
        """Wait for a condition while the run goes on."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)

    def gone(self) -> bool:
        """Whether nothing this run started is left, at the latest after a moment."""
        deadline = time.monotonic() + PATIENCE_S
        while self.everyone():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def processes_with(*words: str) -> list[int]:
    """The live processes whose command lines hold all ``words``."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if line and all(word in line for word in words):
            found.append(int(path.name))
    return found


@contextmanager
def bench(
    url: str, run_dir: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Generator[Running]:
    """Start ``weir bench URL`` with its record in ``run_dir``; it is ended with the block."""
    log = run_dir.with_suffix(".log")
    command = [sys.executable, "-m", "tokenweir", "bench", url, "--backend", "sim", "--out", str(run_dir)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env=None if env is None else {**os.environ, **env},  # noqa: TID251
            process_group=0,
        )
    running = Running(process, run_dir, log)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()

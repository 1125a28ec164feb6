"""Starts ``weir`` processes quickly: one process imports all once, and is forked for each; some are told how to fail.

Run as a program it is that process: it reads orders, a JSON object a line, and answers each with the id of the process.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from tests.factories.scaled import READY_S, said
from tests.faults.points import arm

from tokenweir.cli.main import main as weir
from tokenweir.config import child_environment

_REPOSITORY = Path(__file__).parents[2]
_WARM = (
    "tokenweir.cli.gateway",
    "tokenweir.cli.worker",
    "tokenweir.cli.collector",
    "tokenweir.cli.notifier",
    "tokenweir.stores.gateway.composed.opening",
    "tokenweir.stores.migrate",
    "uvloop",
)
_LOOK_S = 0.02


class Nursling:
    """A ``weir`` process. ``url`` is where it listens, if it does."""

    def __init__(self, name: str, pid: int, log: Path) -> None:
        self.name = name
        self.pid = pid
        self.url = ""
        self._log = log

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return Path(f"/proc/{self.pid}").exists()

    def ready(self) -> None:
        """Return when it has said that it is ready."""
        deadline = time.monotonic() + READY_S
        while not (line := said(self.log())):
            if not self.alive or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} did not start:\n{self.log()}")
            time.sleep(_LOOK_S)
        address = line.split()[2]
        self.url = address if address.startswith("http") else ""

    def kill(self) -> None:
        """End it as a power failure would."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
        self.gone()

    def stop(self) -> None:
        """End it as an operator does."""
        os.kill(self.pid, signal.SIGTERM)
        self.gone()

    def step_clock(self) -> None:
        """Let its clock step as it was told when it was started."""
        os.kill(self.pid, signal.SIGUSR1)

    def gone(self) -> None:
        """Return when it has ended."""
        deadline = time.monotonic() + READY_S
        while self.alive:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} does not end:\n{self.log()}")
            time.sleep(_LOOK_S)

    def log(self) -> str:
        """Return what it has printed."""
        return self._log.read_text(encoding="utf-8")

    def resident_bytes(self) -> int:
        """Return how much memory it holds of its own."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Nursery:
    """The process that is forked. All that it has started end with it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_REPOSITORY,
            env=child_environment({"WEIR_HOME": str(home)}),
        )

    def begin(self, *command: str, point: str = "", step_ns: int = 0) -> Nursling:
        """Begin to start a process; it is killed at ``point``, and its clock steps when it is told."""
        self._count += 1
        log = self._home / f"{self._count}-{command[0]}.log"
        log.touch()
        order = {
            "arguments": ["--config", str(self._home / "weir.toml"), *command],
            "log": str(log),
            "point": point,
            "step_ns": step_ns,
        }
        given, told = self._process.stdin, self._process.stdout
        if given is None or told is None:
            raise AssertionError("the nursery has no pipes")
        given.write(json.dumps(order).encode() + b"\n")
        given.flush()
        return Nursling(f"{command[0]} {point}", int(_line(told)), log)

    def start(self, *commands: Sequence[str]) -> list[Nursling]:
        """Start processes at once, and return when all are ready."""
        begun = [self.begin(*command) for command in commands]
        for each in begun:
            each.ready()
        return begun

    def close(self) -> None:
        """End it, and all that it has started."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _line(told: IO[bytes]) -> bytes:
    line = told.readline()
    if not line:
        raise AssertionError("the nursery has ended")
    return line


def _run(order: Mapping[str, Any]) -> NoReturn:
    """Become what was ordered."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _steps(order["step_ns"])
    if order["point"]:
        arm(order["point"])
    sys.argv = ["weir", *order["arguments"]]
    try:
        weir()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(0)


def _steps(step_ns: int) -> None:
    """Let the clock step when this process is told (SIGUSR1), forth and, told again, back."""
    real_ns, real, steps = time.time_ns, time.time, [0]

    def step(_number: int, _frame: FrameType | None) -> None:
        steps[0] = step_ns - steps[0]

    time.time_ns = lambda: real_ns() + steps[0]
    time.time = lambda: real() + steps[0] / 1e9
    signal.signal(signal.SIGUSR1, step)


def _serve() -> None:
    for module in _WARM:
        importlib.import_module(module)
    # Those that have ended leave nothing.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    started: list[int] = []
    for line in sys.stdin.buffer:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(order)
        started.append(pid)
        os.write(1, f"{pid}\n".encode())
    for pid in started:
        if Path(f"/proc/{pid}/stat").exists() and f" {os.getpid()} " in Path(f"/proc/{pid}/stat").read_text():
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()

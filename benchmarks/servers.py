"""Servers for the benchmarks: processes that are ready when they are handed over, and ended when they were used."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from benchmarks.harness import CORES, raise_descriptor_limit, weir

T = TypeVar("T")
READY = re.compile(r"weir \w+: (?:(\S+) )?ready")
"""What each of our servers says once it is ready, with its URL where it has one."""

_START_S = 120.0
_STOP_S = 30.0
_LOOK_S = 0.005
_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class Server(Generic[T]):
    """A process that serves. ``told`` is what was found when it was ready, ``ready_s`` after the start."""

    pid: int
    told: T
    ready_s: float


@contextmanager
def server(
    command: Sequence[str],
    ready: Callable[[str], T | None],
    *,
    cores: Iterable[int] = CORES,
    environment: Mapping[str, str] | None = None,
    stop_s: float = _STOP_S,
) -> Generator[Server[T]]:
    """Run a command on ``cores`` until the block ends. ``ready`` looks at its output and finds that it serves.

    What is on its way at the end has ``stop_s`` to finish.

    Raises:
        RuntimeError: it did not start, or ended before the block did; with its output.
    """
    raise_descriptor_limit()
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},  # noqa: TID251 - a child is given it whole
        )
        os.sched_setaffinity(child.pid, set(cores))

        def output() -> str:
            # The place in the file is the child's, too, and stays where it is.
            return os.pread(log.fileno(), _LOG_BYTES, 0).decode(errors="replace")

        try:
            while not (told := ready(output())):
                if child.poll() is not None or time.monotonic() - began > _START_S:
                    raise RuntimeError(output())
                time.sleep(_LOOK_S)
            yield Server(child.pid, told, time.monotonic() - began)
            if child.poll() is not None:
                raise RuntimeError(output())
        finally:
            child.terminate()
            try:
                child.wait(stop_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def weir_server(
    home: Path,
    role: str,
    *arguments: str,
    settings: str = "",
    ready: re.Pattern[str] = READY,
    cores: Iterable[int] = CORES,
    stop_s: float = _STOP_S,
) -> Generator[Server[re.Match[str]]]:
    """Run ``weir ROLE`` with ``settings`` and whatever it keeps in the folder ``home``."""
    config = home / f"{role}.toml"
    config.write_text(settings)
    with server(
        weir("--config", str(config), role, *arguments),
        ready.search,
        cores=cores,
        environment={"WEIR_HOME": str(home)},
        stop_s=stop_s,
    ) as started:
        yield started


def free_port() -> int:
    """Return a port that was free a moment ago, for servers that cannot be told to find one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])

"""The engine's process: started in a group of its own, its output captured line by line, killed with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from typing import Final, Literal

from tokenweir import config
from tokenweir.telemetry import machine
from tokenweir.telemetry.logs import get_logger

MODULE: Final = "tokenweir.runtime.child"
"""What is run, with the number of its end of the bridge: ``python -m tokenweir.runtime.child --fd N``."""

_READ_BYTES: Final = 64 * 1024
_MAX_LINE_BYTES: Final = 8 * 1024
_KEPT_LINES: Final = 20

_log = get_logger("tokenweir.runtime.child")

Stream = Literal["stdout", "stderr"]


class LineCutter:
    """Cuts output into lines. One that is longer than 8 KiB comes in pieces, so that nothing piles up."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that ``data`` completes, without their ends; empty ones are left out."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > _MAX_LINE_BYTES:
            whole.append(self._rest[:_MAX_LINE_BYTES])
            self._rest = self._rest[_MAX_LINE_BYTES:]
        return [text for line in whole for text in self._pieces(line)]

    def end(self) -> list[str]:
        """Return what is left."""
        rest, self._rest = self._rest, b""
        return self._pieces(rest)

    def _pieces(self, line: bytes) -> list[str]:
        line = line.rstrip(b"\r")
        starts = range(0, len(line), _MAX_LINE_BYTES)
        return [line[at : at + _MAX_LINE_BYTES].decode(errors="replace") for at in starts]


class ChildProcess:
    """One process of an engine. ``sock`` is our end of the bridge; whoever reads it closes it."""

    def __init__(
        self, process: asyncio.subprocess.Process, sock: socket.socket, fields: Mapping[str, object]
    ) -> None:
        self._process = process
        self._fields = {**fields, "pid": process.pid}
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self.sock = sock

    @classmethod
    async def spawn(cls, device: str, epoch: int, *, preload_blas: bool) -> ChildProcess:
        """Start the process. Raises OSError when the system cannot."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    MODULE,
                    "--fd",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=environment(preload_blas=preload_blas),
                )
        except BaseException:
            ours.close()
            raise
        return cls(process, ours, {"device": device, "epoch": epoch})

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> str:
        """Log what it writes until it is gone, and return how it ended, with its last words."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._capture(self._process.stdout, "stdout"))
            group.create_task(self._capture(self._process.stderr, "stderr"))
            status = await self._process.wait()
            # What it started may still hold its pipes open.
            self.kill()
        return ending(status, tuple(self._tail))

    async def reap(self) -> None:
        """Wait until the process is gone, whatever it writes."""
        await self._process.wait()

    async def _capture(self, pipe: asyncio.StreamReader | None, stream: Stream) -> None:
        if pipe is None:
            return
        cutter = LineCutter()
        while data := await pipe.read(_READ_BYTES):
            self._write(cutter.feed(data), stream)
        self._write(cutter.end(), stream)

    def _write(self, lines: list[str], stream: Stream) -> None:
        for line in lines:
            if stream == "stderr":
                self._tail.append(line)
                _log.warning("engine_output", line=line, stream=stream, **self._fields)
            else:
                _log.info("engine_output", line=line, stream=stream, **self._fields)


def ending(status: int, tail: tuple[str, ...]) -> str:
    """Return in words how a process ended: its signal or status, and the last line that says something."""
    if status < 0:
        try:
            how = f"it was ended by {signal.Signals(-status).name}"
        except ValueError:
            how = f"it was ended by signal {-status}"
    else:
        how = f"it ended with status {status}"
    last = next((line.strip() for line in reversed(tail) if line.strip() and not line.startswith(" ")), "")
    return f"{how}: {last}" if last else how


def environment(*, preload_blas: bool) -> dict[str, str]:
    """Return the environment of the process: ours, output unbuffered, a trace on a fatal signal, and a fast BLAS.

    On Linux the arithmetic of MLX's CPU wheel is as fast as the BLAS that is found first, so an OpenBLAS of the
    system is put before it, for this process only.
    """
    extra = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    library = machine.blas().preloadable if preload_blas and sys.platform == "linux" else None
    if library is not None:
        before = config.read_environment().get("LD_PRELOAD", "")
        extra["LD_PRELOAD"] = f"{library}:{before}" if before else str(library)
    return config.child_environment(extra)

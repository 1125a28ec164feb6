"""Drives the real capture in one thread against a server that a test scripts piece by piece.

The capture waits through a poller; this one lets the script go on only when the capture has read all that was sent
and would wait, so a test decides which bytes a read holds, without sleeping.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenweir.bench.engine.capture import Capture
from tokenweir.bench.engine.live import LiveCounters
from tokenweir.bench.engine.plan import WorkerPlan, write_payloads
from tokenweir.bench.engine.pool import create_pool
from tokenweir.bench.engine.segment import End, Outlet
from tokenweir.bench.finishing.segments import Captured, Inlet
from tokenweir.poller import NEVER, SelectorPoller

PATIENCE_S = 5.0
SLOT_BYTES = 512 << 10
REQUEST = b"POST /lines HTTP/1.1\r\nhost: stage\r\ncontent-length: 2\r\n\r\nhi"

Script = Generator[bool, None, None]
"""What the server does, step by step. A step yields whether the client is to notice something of it; where it is
not, the capture has a millisecond for its own affairs."""
ENDS = {
    value: name for name, value in vars(End).items() if not name.startswith("_") and isinstance(value, int)
}


class Line:
    """The server's side of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def hear(self, count: int = 1, request: bytes = REQUEST) -> None:
        """Read ``count`` whole requests."""
        left = count * len(request)
        while left:
            piece = self.socket.recv(left)
            if not piece:
                raise ConnectionError("the client closed before its request was whole")
            left -= len(piece)

    def heard(self, request: bytes = REQUEST) -> bool:
        """Read a request if it is there whole; does not wait."""
        self.socket.settimeout(0)
        try:
            whole = len(self.socket.recv(len(request), socket.MSG_PEEK)) == len(request)
        except BlockingIOError:
            whole = False
        finally:
            self.socket.settimeout(PATIENCE_S)
        if whole:
            self.hear(request=request)
        return whole

    def say(self, *pieces: bytes) -> Script:
        """Send pieces; each is read before the next is sent."""
        for piece in pieces:
            if piece:
                self.socket.sendall(piece)
                yield True

    def ended(self) -> bool:
        """Whether the client has closed; does not wait."""
        self.socket.settimeout(0)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self.socket.settimeout(PATIENCE_S)

    def drain(self, count: int) -> Script:
        """Read ``count`` bytes as the client gets to send them."""
        self.socket.settimeout(0)
        while count:
            try:
                count -= len(self.socket.recv(min(count, 1 << 20)))
            except BlockingIOError:
                yield False
        self.socket.settimeout(PATIENCE_S)

    def reset(self) -> None:
        """Close so that the client sees a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


class Server:
    """A listening socket whose connections the script accepts when it likes."""

    def __init__(self) -> None:
        self.door = socket.create_server(("127.0.0.1", 0))
        self.door.settimeout(PATIENCE_S)
        self.lines: list[Line] = []

    @property
    def port(self) -> int:
        return int(self.door.getsockname()[1])

    def accept(self) -> Line:
        """Take the next connection; one that was only a probe of the address is passed over."""
        while True:
            connection, _ = self.door.accept()
            line = Line(connection)
            if not line.ended():
                self.lines.append(line)
                return line
            line.close()

    def knock(self) -> Line | None:
        """Take the next connection if one waits."""
        self.door.settimeout(0)
        try:
            return self.accept()
        except BlockingIOError:
            return None
        finally:
            self.door.settimeout(PATIENCE_S)

    def awaited(self) -> Generator[bool, None, Line]:
        """Return the next connection once it comes, and let the capture go on until then."""
        while (line := self.knock()) is None:
            yield False
        return line

    def close(self) -> None:
        for line in self.lines:
            line.close()
        self.door.close()


class ScriptedPoller(SelectorPoller):
    """Lets the script take a step whenever the capture would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.script: Script | None = None
        self.idle_waits = 0

    def wait(self, until_ns: int | None) -> list[tuple[int, int]]:
        """Return what is ready; before waiting for anything, let the script go on."""
        ready = super().wait(0)
        if ready or self.script is None:
            return ready or self._rest(until_ns)
        try:
            noticed = next(self.script)
        except StopIteration:
            self.script = None
            return self._rest(until_ns)
        if noticed:
            return super().wait(time.monotonic_ns() + 1_000_000_000)
        return super().wait(min(NEVER if until_ns is None else until_ns, time.monotonic_ns() + 1_000_000))

    def _rest(self, until_ns: int | None) -> list[tuple[int, int]]:
        self.idle_waits += 1
        return super().wait(until_ns)


class Taken(NamedTuple):
    """What a capture left: its segments, and the capture itself."""

    segments: list[Captured]
    capture: Capture
    live: LiveCounters

    @property
    def ends(self) -> list[tuple[int, str]]:
        """(request, how) in order."""
        return [(int(row[0]), ENDS[int(row[1])]) for one in self.segments for row in one.ends]

    @property
    def sends(self) -> list[tuple[int, int, int, int]]:
        """(request, connection, scheduled, sent) in order."""
        return [
            (int(row[0]), int(row[1]), int(row[2]), int(row[3])) for one in self.segments for row in one.sends
        ]

    def reads(self, request: int) -> list[bytes]:
        """The bytes of each read of a request."""
        found: list[bytes] = []
        for one in self.segments:
            starts: npt.NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), one.offsets[:-1]])
            for start, end, owner in zip(starts, one.offsets, one.requests, strict=True):
                if owner == request:
                    found.append(one.raw[int(start) : int(end)])
        return found


def copies(inlet: Inlet, announced: bytes) -> list[Captured]:
    """Take the announced segments, each as it stands apart from the memory it came in."""
    found: list[Captured] = []
    for what in announced:
        with inlet.take(what) as one:
            found.append(
                Captured(
                    requests=one.requests.copy(),
                    offsets=one.offsets.copy(),
                    stamps_ns=one.stamps_ns,
                    sends=one.sends.copy(),
                    ends=one.ends.copy(),
                    clocks=one.clocks.copy(),
                    raw=one.raw[: int(one.offsets[-1]) if len(one.offsets) else 0],
                )
            )
    return found


class Stage:
    """A capture about to run against :class:`Server`."""

    def __init__(self, folder: Path, slot_bytes: int) -> None:
        self.folder = folder
        self.pool = create_pool(folder, slot_bytes=slot_bytes)
        self.server = Server()
        self.poller = ScriptedPoller()
        self.control, self.tell = os.pipe()
        self._notices, self._notify = os.pipe()
        self._inlet = Inlet(folder, self.pool)
        self.capture: Capture | None = None
        self._closed = False

    def plan(self, **changes: object) -> WorkerPlan:
        """Return a plan for one connection; ``changes`` replace fields."""
        fields: dict[str, object] = {
            "worker": 0,
            "load": 0,
            "folder": str(self.folder),
            "host": "127.0.0.1",
            "port": self.server.port,
            "tls": False,
            "verify_tls": True,
            "server_name": "127.0.0.1",
            "payloads_fd": -1,
            "payload_ends": str(self.folder / "ends.i64"),
            "payload_of": "",
            "requests": 1,
            "schedule": None,
            "slots": 1,
            "duration_ns": None,
            "repeat": False,
            "timeout_ns": 20_000_000_000,
            "warm_connections": 1,
            "spare_connections": 0,
            "kernel_stamps": False,
            "portable_poller": True,
            **changes,
        }
        return WorkerPlan(**fields)  # type: ignore[arg-type]

    def play(
        self,
        script: Callable[[Server], Script],
        *,
        requests: int = 1,
        schedule: Sequence[int] | None = None,
        payload: bytes = REQUEST,
        before_run: Callable[[Server], None] | None = None,
        **changes: object,
    ) -> Taken:
        """Run the capture to its end while ``script`` plays the server."""
        with tempfile.TemporaryFile(dir=self.folder) as payloads:
            write_payloads(payloads, self.folder / "ends.i64", [payload])
            live = LiveCounters(self.folder / "live.bin")
            capture = Capture(
                self.plan(payloads_fd=payloads.fileno(), requests=requests, **changes),
                poller=self.poller,
                outlet=Outlet(self.folder, self.pool, self._notify),
                payload_of=array("q", [0] * requests),
                live=live,
                control_fd=self.control,
            )
            self.capture = capture
            code = capture.warm_up()
            if code:
                raise ConnectionError(code, os.strerror(code))
            if before_run is not None:
                before_run(self.server)
            self.poller.script = script(self.server)
            capture.run(time.monotonic_ns(), None if schedule is None else array("q", schedule))
            self.poller.script = None
        return Taken(self.handed_over(), capture, live)

    def handed_over(self) -> list[Captured]:
        """Return copies of the segments announced since the last call."""
        os.set_blocking(self._notices, False)
        try:
            announced = os.read(self._notices, 1 << 16)
        except BlockingIOError:
            return []
        return copies(self._inlet, announced)

    def close(self) -> None:
        """Close what the stage opened, and what a capture left open that a failing script cut short."""
        self.server.close()
        if self.poller.script is not None:
            self.poller.script.close()
        if self.capture is not None:
            self.capture._connections.close_all()  # pyright: ignore[reportPrivateUsage]
        self.poller.close()
        for fd in (self.control, self.tell, self._notices, self._notify, self.pool):
            os.close(fd)


@contextmanager
def stage(*, slot_bytes: int = SLOT_BYTES) -> Generator[Stage]:
    """Give a stage in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        made = Stage(Path(folder), slot_bytes)
        try:
            yield made
        finally:
            made.close()


def one_answer(*pieces: bytes, close: bool = False) -> Callable[[Server], Script]:
    """A script that answers one request with pieces, and closes after them if told to."""

    def script(server: Server) -> Script:
        line = server.accept()
        line.hear()
        yield from line.say(*pieces)
        if close:
            line.close()
            yield True

    return script


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Cut ``data`` at the offsets in ``cuts``."""
    borders = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


__all__ = [
    "REQUEST",
    "Line",
    "Script",
    "Server",
    "Stage",
    "Taken",
    "copies",
    "one_answer",
    "split",
    "stage",
]

"""What a capture leaves behind: segments of raw bytes with the stamps and requests they belong to.

The capture appends to a buffer in memory; a thread writes full buffers to files (the system call releases the
interpreter lock, so the capture does not wait for the disk) and tells the finishing process by one byte
count per file. Nothing is parsed on this side.

File layout, little endian int64 unless said: magic, reads, sends, ends, clocks, raw bytes; then per read its
request and its end offset in the raw bytes; per read 16 bytes of stamp (seconds, nanoseconds of CLOCK_REALTIME);
per send (request, connection, scheduled, sent); per end (request, how, detail, at); per clock (monotonic, offset);
then the raw bytes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from array import array
from pathlib import Path
from typing import Final

from tokenweir.bench.engine.priority import go_between
from tokenweir.core.errors import DiskFullError

MAGIC: Final = 0x5745_4952_5345_4731
HEAD_BYTES: Final = 48
SEGMENT_BYTES: Final = 4 << 20
"""Raw bytes in a segment: large enough that a write is rare, small enough that three are cheap to hold."""
IO_BYTES: Final = 64 << 10
"""One system call moves this much: within one, some kernels let nobody else run, and the capture must not wait."""
ROOM_BYTES: Final = 64 << 10
"""A read may bring this much, so a segment with less room is full."""
SPARE_SEGMENTS: Final = 2


class End:
    """How a request's exchange ended, as the socket saw it; the finishing pass judges the content."""

    WHOLE: Final = 0
    EOF: Final = 1
    RESET: Final = 2
    TIMEOUT: Final = 3
    CANCELLED: Final = 4
    CONNECT: Final = 5
    UNSENT: Final = 6
    BAD_HEAD: Final = 7


class Segment:
    """One buffer being filled. The capture appends to its arrays directly."""

    __slots__ = ("clocks", "ends", "offsets", "raw", "requests", "sends", "stamps", "used", "view")

    def __init__(self) -> None:
        self.raw = bytearray(SEGMENT_BYTES)
        self.view = memoryview(self.raw)
        self.requests = array("q")
        self.offsets = array("q")
        self.stamps = bytearray()
        self.sends = array("q")
        self.ends = array("q")
        self.clocks = array("q")
        self.used = 0

    def empty(self) -> bool:
        """Whether nothing was recorded."""
        return not (self.requests or self.sends or self.ends)

    def clear(self) -> None:
        """Forget what was recorded, keeping the memory of the raw buffer."""
        self.requests = array("q")
        self.offsets = array("q")
        self.stamps = bytearray()
        self.sends = array("q")
        self.ends = array("q")
        self.clocks = array("q")
        self.used = 0


class SegmentWriter:
    """Writes segments in order and announces each on ``notify_fd`` with one byte; the file names are counted.

    Raises DiskFullError from :meth:`put` and :meth:`close` when a write failed.
    """

    def __init__(self, folder: Path, notify_fd: int) -> None:
        self._folder = folder
        self._notify_fd = notify_fd
        self._full: queue.Queue[Segment | None] = queue.Queue(maxsize=SPARE_SEGMENTS + 1)
        self._free: queue.Queue[Segment] = queue.Queue()
        for _ in range(SPARE_SEGMENTS):
            self._free.put(Segment())
        self._failure: OSError | None = None
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="segment-writer", daemon=True)
        self._thread.start()

    def put(self, segment: Segment) -> Segment:
        """Hand over a segment and return an empty one. Waits only when the disk is slower than the capture."""
        self._check()
        self._full.put(segment)
        fresh = self._free.get()
        self._check()
        return fresh

    def idle(self) -> bool:
        """Whether a segment can be handed over without waiting."""
        return not self._free.empty() and not self._full.full()

    def close(self, segment: Segment) -> None:
        """Write the last segment and wait until all are on disk."""
        self._full.put(segment)
        self._full.put(None)
        self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            message = f"captured bytes cannot be written to {str(self._folder)!r}: {self._failure.strerror}"
            raise DiskFullError(message, mend="free room there, or choose another folder with --out")

    def _run(self) -> None:
        # Writing is milliseconds of work in the kernel, which the capture must not wait for on its own core.
        if sys.platform.startswith("linux"):
            go_between()
        while (segment := self._full.get()) is not None:
            if self._failure is None and not segment.empty():
                try:
                    self._write(segment)
                except OSError as failure:
                    self._failure = failure
            segment.clear()
            self._free.put(segment)

    def _write(self, segment: Segment) -> None:
        head = array(
            "q",
            (
                MAGIC,
                len(segment.requests),
                len(segment.sends) // 4,
                len(segment.ends) // 4,
                len(segment.clocks) // 2,
                segment.used,
            ),
        )
        path = self._folder / f"{self._count:08d}.seg"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for part in (
                head,
                segment.requests,
                segment.offsets,
                segment.stamps,
                segment.sends,
                segment.ends,
                segment.clocks,
                segment.view[: segment.used],
            ):
                data = memoryview(part).cast("B")
                while data:
                    data = data[os.write(fd, data[:IO_BYTES]) :]
        except OSError:
            # Nobody can use a part of a segment, but the rows of whole ones need its room.
            path.unlink()
            raise
        finally:
            os.close(fd)
        self._count += 1
        # The finishing process may have died; its parent finds that out and says why.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._notify_fd, b"s")

"""What a capture leaves behind: segments of raw bytes with the stamps and requests they belong to.

A segment is filled in a slot, memory that the finishing process sees too: reads go straight into it. It is handed over
by putting its tables behind its raw bytes and announcing the slot's number with a byte. Where too few slots are free,
because the finishing process is late, or where the tables are too long, it goes to a file instead, so nothing is
lost and memory stays as it is. Nothing is parsed on this side.

Layout of slots and files, little endian int64: raw bytes, filled up to a multiple of 8; per read its request; per read
its end offset in the raw bytes; per read its stamp (seconds, nanoseconds of CLOCK_REALTIME); per send (request,
connection, scheduled, sent); per end (request, how, detail, at); per clock (monotonic, offset). The head comes last
of all: magic, reads, sends, ends, clocks, raw bytes. A slot whose head is blank is free.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from tokenweir.bench.engine.pool import map_pool
from tokenweir.core.errors import DiskFullError

MAGIC: Final = 0x5745_4952_5345_4731
HEAD: Final = struct.Struct("=6q")
LINE: Final = struct.Struct("=4q")
"""A line of ``sends`` or ``ends``."""
ROOM_BYTES: Final = 64 << 10
"""A read may bring this much, so a segment with less room is full."""
_STEP_BYTES: Final = 64 << 10
SPILLED: Final = 255
"""Announced instead of a slot's number: the next file."""


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
    """A slot being filled. The capture appends to the tables directly; ``view`` is where reads go, full at ``limit``.

    ``sends`` and ``ends`` hold packed lines, because packing is quicker than extending an array by four.
    """

    __slots__ = ("clocks", "ends", "limit", "offsets", "requests", "sends", "slot", "stamps", "used", "view")

    def __init__(self, slot: mmap.mmap) -> None:
        raw = len(slot) // 8 * 5
        self.slot = slot
        self.view = memoryview(slot)[:raw]
        self.limit = raw - ROOM_BYTES
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.requests = array("q")
        self.offsets = array("q")
        self.stamps = bytearray()
        self.sends = bytearray()
        self.ends = bytearray()
        self.clocks = array("q")
        self.used = 0

    def empty(self) -> bool:
        """Whether nothing was recorded."""
        return not (self.requests or self.sends or self.ends)

    def free(self) -> bool:
        """Whether the finishing process has done with what the slot held."""
        return not self.slot[-HEAD.size]

    def parts(self) -> list[memoryview]:
        """Return all but the head: the raw bytes and each table."""
        end = -(-self.used // 8) * 8
        tables = (self.requests, self.offsets, self.stamps, self.sends, self.ends, self.clocks)
        return [self.view[:end], *(memoryview(table).cast("B") for table in tables)]

    def head(self) -> bytes:
        """Return the head."""
        counts = len(self.requests), len(self.sends) // LINE.size, len(self.ends) // LINE.size
        return HEAD.pack(MAGIC, *counts, len(self.clocks) // 2, self.used)

    def seal(self) -> bool:
        """Complete the slot, whereby it becomes the finishing process's; False when the tables have no room in it."""
        raw, *tables = self.parts()
        if len(raw) + sum(map(len, tables)) + HEAD.size > len(self.slot):
            return False
        place = len(raw)
        for table in tables:
            self.slot[place : place + len(table)] = table
            place += len(table)
        self.slot[-HEAD.size :] = self.head()
        return True


class Outlet:
    """Hands segments to the finishing process in order, each announced on ``notify_fd``; counts the ``spilled``.

    One slot beside the one being filled is always kept from the finishing process, so that there is one to go on with
    while another is written to a file. That is done in steps, because the capture cannot be away for so long:
    whenever ``spilling`` is true, :meth:`step` takes it a little further.
    """

    def __init__(self, folder: Path, pool_fd: int, notify_fd: int) -> None:
        self._folder = folder
        self._notify_fd = notify_fd
        self._segments = [Segment(slot) for slot in map_pool(pool_fd, ahead=True)]
        self._steps: Iterator[None] = iter(())
        self._heard = True
        self.first = self._segments[0]
        self.spilling: Segment | None = None
        self.spilled = 0

    def put(self, segment: Segment) -> Segment:
        """Hand over a segment and return an empty one. Raises DiskFullError as :meth:`step` does."""
        self.finish()
        following = self._free_beside(segment)[0]
        if segment.empty() or not self._heard:
            following = segment
        elif self.ready(segment) and segment.seal():
            self._announce(self._segments.index(segment))
        else:
            self.spilling, self._steps = segment, self._spill(segment)
        following.clear()
        return following

    def ready(self, segment: Segment) -> bool:
        """Whether the finishing process may have this segment's slot, so that it need not go to a file."""
        return len(self._free_beside(segment)) > 1

    def step(self) -> None:
        """Write some more of the segment that goes to a file.

        Raises:
            DiskFullError: it cannot be written.
        """
        if next(self._steps, self) is self:
            self.spilling = None

    def finish(self) -> None:
        """Write all the rest of it. Raises DiskFullError as :meth:`step` does."""
        while self.spilling is not None:
            self.step()

    def _free_beside(self, segment: Segment) -> list[Segment]:
        return [one for one in self._segments if one not in {segment, self.spilling} and one.free()]

    def _announce(self, what: int) -> None:
        try:
            os.write(self._notify_fd, bytes((what,)))
        except BrokenPipeError:
            # The finishing process died: its parent finds that out and says why, and nobody reads what follows.
            self._heard = False

    def _spill(self, segment: Segment) -> Generator[None]:
        path = self._folder / f"{self.spilled:08d}.seg"
        try:
            with path.open("wb", buffering=0) as file:
                for part in (*segment.parts(), memoryview(segment.head())):
                    place = 0
                    while place < len(part):
                        place += file.write(part[place : place + _STEP_BYTES])
                        yield
        except OSError as failure:
            # Nobody can use a part of a segment, but the rows of whole ones need its room.
            path.unlink(missing_ok=True)
            message = f"captured bytes cannot be written to {str(self._folder)!r}: {failure.strerror}"
            raise DiskFullError(
                message, mend="free room there, or choose another folder with --out"
            ) from failure
        self.spilled += 1
        self._announce(SPILLED)

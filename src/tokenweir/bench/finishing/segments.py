"""Reading back what a capture left, in a slot of the shared memory or in a file."""

from __future__ import annotations

import mmap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenweir.bench.engine.pool import map_pool
from tokenweir.bench.engine.segment import HEAD, MAGIC, SPILLED
from tokenweir.core.errors import RecordError

Ints: TypeAlias = npt.NDArray[np.int64]

_IO_BYTES: Final = 64 << 10
"""One system call moves this much: within one, some kernels let nobody else run, and the capture must not wait."""


class Captured(NamedTuple):
    """A segment read back. ``stamps_ns`` is CLOCK_REALTIME; ``sends`` and ``ends`` have 4 columns, ``clocks`` 2.

    ``raw`` begins with the raw bytes; what follows them there is none of them.
    """

    requests: Ints
    offsets: Ints
    stamps_ns: Ints
    sends: Ints
    ends: Ints
    clocks: Ints
    raw: bytes | mmap.mmap


class Inlet:
    """Where a capture's segments come from."""

    def __init__(self, folder: Path, pool_fd: int) -> None:
        self._folder = folder
        self._slots = map_pool(pool_fd)
        self._files = 0

    @contextmanager
    def take(self, announced: int) -> Generator[Captured]:
        """Give the announced segment, whose memory is the capture's again afterwards.

        Raises:
            RecordError: there is no whole segment.
        """
        if announced == SPILLED:
            path = self._folder / f"{self._files:08d}.seg"
            self._files += 1
            content = _read_in_steps(path)
            # Its room is needed for its rows, where the disk is full.
            _remove_in_steps(path)
            yield parse(content, path.name)
        else:
            slot = self._slots[announced]
            yield parse(slot, f"slot {announced}")
            slot[-HEAD.size :] = bytes(HEAD.size)


def parse(content: bytes | mmap.mmap, name: str) -> Captured:
    """Read a slot or a file. The tables are views of it. Raises RecordError when it holds no whole segment."""
    head = content[-HEAD.size :].rjust(HEAD.size, b"\0")
    magic, reads, sends, ends, clocks, used = HEAD.unpack(head)
    if magic != MAGIC:
        message = f"{name!r} is no capture segment, or is cut short: {len(content)} bytes"
        raise RecordError(message, mend="the disk may have filled up; free room and run again")
    parts: list[Ints] = []
    place = -(-used // 8) * 8
    for count in (reads, reads, reads * 2, sends * 4, ends * 4, clocks * 2):
        parts.append(np.frombuffer(content, np.int64, count, place))
        place += 8 * count
    requests, offsets, stamps, sent, ended, clock = parts
    seconds = stamps.reshape(-1, 2)
    return Captured(
        requests=requests,
        offsets=offsets,
        stamps_ns=seconds[:, 0] * 1_000_000_000 + seconds[:, 1],
        sends=sent.reshape(-1, 4),
        ends=ended.reshape(-1, 4),
        clocks=clock.reshape(-1, 2),
        raw=content,
    )


def _read_in_steps(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(_IO_BYTES), b""))


def _remove_in_steps(path: Path) -> None:
    """Remove a file a little at a time, for the same reason that it is read so."""
    with path.open("r+b", buffering=0) as file:
        for size in range(path.stat().st_size - 4 * _IO_BYTES, 0, -4 * _IO_BYTES):
            file.truncate(size)
    path.unlink()

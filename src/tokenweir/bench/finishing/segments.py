"""Reading back what a capture left."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokenweir.bench.engine.segment import HEAD_BYTES, IO_BYTES, MAGIC
from tokenweir.core.errors import RecordError

Ints = npt.NDArray[np.int64]


class Captured(NamedTuple):
    """A segment read back. ``stamps_ns`` is CLOCK_REALTIME; ``sends`` and ``ends`` have 4 columns, ``clocks`` 2."""

    requests: Ints
    offsets: Ints
    stamps_ns: Ints
    sends: Ints
    ends: Ints
    clocks: Ints
    raw: bytes


def read_segment(path: Path) -> Captured:
    """Read a segment file. Raises RecordError when it is not one or is cut short."""
    content = _read_in_steps(path)
    head = np.frombuffer(content[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0"), np.int64)
    if head[0] != MAGIC:
        message = f"{str(path)!r} is not a capture segment"
        raise RecordError(message, mend="delete the run directory and run again")
    reads, sends, ends, clocks, used = (int(value) for value in head[1:])
    counts = (reads, reads, reads * 2, sends * 4, ends * 4, clocks * 2)
    if len(content) != HEAD_BYTES + 8 * sum(counts) + used:
        message = f"{str(path)!r} is cut short: {len(content)} bytes"
        raise RecordError(message, mend="the disk may have filled up; free room and run again")
    parts: list[Ints] = []
    position = HEAD_BYTES
    for count in counts:
        parts.append(np.frombuffer(content, np.int64, count, position))
        position += 8 * count
    requests, offsets, stamps, sent, ended, clock = parts
    seconds = stamps.reshape(-1, 2)
    return Captured(
        requests=requests,
        offsets=offsets,
        stamps_ns=seconds[:, 0] * 1_000_000_000 + seconds[:, 1],
        sends=sent.reshape(-1, 4),
        ends=ended.reshape(-1, 4),
        clocks=clock.reshape(-1, 2),
        raw=content[position:],
    )


def remove_segment(path: Path) -> None:
    """Remove a segment file a little at a time, for the same reason that it is read so."""
    with path.open("r+b", buffering=0) as file:
        for size in range(path.stat().st_size - 4 * IO_BYTES, 0, -4 * IO_BYTES):
            file.truncate(size)
    path.unlink()


def _read_in_steps(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(IO_BYTES), b""))

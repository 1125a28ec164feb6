"""The memory that a capture shares with its finishing process: a few slots, each for one segment."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Final

from tokenweir.core.errors import DiskFullError

SLOTS: Final = 4
"""One is being filled, one reduced and one waits for that; the last is filled while another goes to a file."""
SLOT_BYTES: Final = 5 << 20
"""Large enough that a hand-over is rare, small enough that all of them are cheap to hold."""
_POPULATE: Final[int] = getattr(mmap, "MAP_POPULATE", 0)


def create_pool(folder: Path, *, portable: bool = False, slot_bytes: int = SLOT_BYTES) -> int:
    """Return a descriptor of the memory, for both processes to inherit.

    Where memory has no descriptor of its own (macOS), or with ``portable``, it is that of a file without a name in
    ``folder``.

    Raises:
        DiskFullError: there is no room for it.
    """
    if hasattr(os, "memfd_create") and not portable:
        fd = os.memfd_create("tokenweir-segments")
        os.ftruncate(fd, SLOTS * slot_bytes)
        return fd
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Written, not only sized: a page that the disk has no room for later would kill who touches it.
            for _ in range(SLOTS):
                file.write(bytes(slot_bytes))
            file.flush()
            return os.dup(file.fileno())
    except OSError as failure:
        message = f"{str(folder)!r} has no room for {SLOTS * slot_bytes} bytes of captured answers"
        raise DiskFullError(message, mend="free room there, or choose another folder with --out") from failure


def map_pool(fd: int, *, ahead: bool = False) -> list[mmap.mmap]:
    """Map the slots; with ``ahead`` all their pages at once, where the system can, so that none is waited for later."""
    size = os.fstat(fd).st_size // SLOTS
    flags = mmap.MAP_SHARED | (_POPULATE if ahead else 0)
    return [mmap.mmap(fd, size, flags=flags, offset=slot * size) for slot in range(SLOTS)]

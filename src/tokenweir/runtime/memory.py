"""How much memory there is to share out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def total_bytes() -> int:
    """Return the memory of this machine, or of the container if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _CGROUP_LIMIT.is_file():
        limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
        if limit.isdecimal():
            return min(machine, int(limit))
    return machine

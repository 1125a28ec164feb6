"""How much memory this process has, as the system counts it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Final

if sys.platform == "darwin":
    import ctypes

_STATM: Final = Path("/proc/self/statm")
_TASK_INFO: Final = 4
"""``PROC_PIDTASKINFO`` of macOS's libproc, whose answer begins with the virtual and the resident size."""
_TASK_INFO_WORDS: Final = 12


def resident_bytes() -> int:
    """Return the bytes of this process in memory now; where the system does not tell, the most it ever had."""
    if sys.platform == "darwin":
        words = (ctypes.c_uint64 * _TASK_INFO_WORDS)()
        filled = ctypes.CDLL(None).proc_pidinfo(
            os.getpid(), _TASK_INFO, ctypes.c_uint64(0), words, ctypes.sizeof(words)
        )
        if filled > 0:
            return int(words[1])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

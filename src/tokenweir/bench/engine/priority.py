"""Whose turn it is on a core: the capture goes first, the finishing process last. All of it where the system allows.

On Linux a process that wakes may have to wait out the time slice of the one that runs, which is milliseconds. A
capture asks for the shortest slice, because the scheduler lets such a one in at once; a finishing process runs under
the idle policy, which gives way to everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from typing import Final

_NICE_FIRST: Final = -10
_NICE_LAST: Final = 19
_SLICE_NS: Final = 100_000
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQ")


def go_first() -> None:
    """Let this process run as soon as it wakes."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE_FIRST)
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform.startswith("linux") and number is not None:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        wanted = _SCHED_ATTR.pack(_SCHED_ATTR.size, 0, 0, nice, 0, _SLICE_NS, 0, 0)
        # A kernel before 6.12 ignores the slice, a stricter one refuses the call; both leave things as they were.
        ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, wanted, 0)


def go_last() -> None:
    """Let every other process run before this one."""
    with contextlib.suppress(OSError):
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.nice(_NICE_LAST)


def go_along() -> None:
    """Take turns like any other process again."""
    with contextlib.suppress(OSError):
        if hasattr(os, "SCHED_OTHER"):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

"""What this machine offers to a measurement, learnt by trying or from the kernel's own files."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

# Linux's generic value; Python names it only in later versions.
_SO_TIMESTAMPNS = 35
_STAMP_TRIES = 200
_STAMP_PAUSE_S = 0.002
_TIMESPEC = struct.Struct("@ll")
_NS_PER_S = 1_000_000_000
_CLOCK_READS = 2_000
_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class Descriptors:
    """How many files and sockets one process may have open: now, and after raising the limit itself."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """A kernel receive timestamp. ``delay_ns`` is from the stamp to the end of the read that brought it."""

    delay_ns: int


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of the machine, those this process may run on, and the container's quota in cores, if any."""

    machine: int
    usable: int
    quota: float | None


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The kernel's time source (``None`` where it does not say) and what one look at the clock costs."""

    source: str | None
    read_ns: float


@dataclass(frozen=True, slots=True)
class Blas:
    """NumPy's linear algebra library, and the path of an OpenBLAS that another process could preload."""

    numpy: str
    preloadable: Path | None


def descriptors() -> Descriptors:
    """Return the limits of open descriptors; one that is unlimited is ``sys.maxsize``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Descriptors(*(sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard)))


def kernel_stamp() -> Stamp | None:
    """Send a byte over loopback TCP and return the kernel's stamp of its arrival; ``None`` without one."""
    if sys.platform != "linux":
        return None
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname(), timeout=2) as sender,
        ):
            receiver, _ = listener.accept()
            with receiver:
                receiver.settimeout(2)
                receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                ancillary, now = list[tuple[int, int, bytes]](), 0
                # The kernel begins to stamp by deferred work, a moment after it was asked to.
                for _ in range(_STAMP_TRIES):
                    sender.sendall(b"x")
                    _, ancillary, _, _ = receiver.recvmsg(1, socket.CMSG_SPACE(_TIMESPEC.size))
                    now = time.time_ns()
                    if ancillary:
                        break
                    time.sleep(_STAMP_PAUSE_S)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, ns = _TIMESPEC.unpack_from(data)
            return Stamp(delay_ns=now - (seconds * _NS_PER_S + ns))
    return None


def cores() -> Cores:
    """Return how many cores there are, and how many of them are ours."""
    machine = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else machine
    quota = None
    if _CPU_QUOTA.is_file():
        limit, _, period = _CPU_QUOTA.read_text(encoding="ascii").strip().partition(" ")
        if limit.isdecimal() and period.isdecimal():
            quota = int(limit) / int(period)
    return Cores(machine=machine, usable=usable, quota=quota)


def clock() -> ClockReading:
    """Return the kernel's time source and the mean cost of reading the monotonic clock."""
    source = _CLOCKSOURCE.read_text(encoding="ascii").strip() if _CLOCKSOURCE.is_file() else None
    began = time.perf_counter_ns()
    for _ in range(_CLOCK_READS):
        time.monotonic_ns()
    return ClockReading(source=source, read_ns=(time.perf_counter_ns() - began) / _CLOCK_READS)


def timerfd() -> bool:
    """Return whether the kernel makes timers that can be waited for beside sockets."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


def blas() -> Blas:
    """Return NumPy's linear algebra library and where a preloadable OpenBLAS lies."""
    built = cast("Mapping[str, Mapping[str, Mapping[str, str]]] | None", np.show_config(mode="dicts")) or {}
    library = built.get("Build Dependencies", {}).get("blas", {})
    name = f"{library.get('name', 'unknown')} {library.get('version', '')}".strip()
    return Blas(numpy=name, preloadable=_openblas())


def local_ports() -> int | None:
    """Return how many connections to one address can be open; ``None`` where the system does not say."""
    if not _LOCAL_PORTS.is_file():
        return None
    low, high = _LOCAL_PORTS.read_text(encoding="ascii").split()
    return int(high) - int(low) + 1


def system() -> str:
    """Return the operating system, its release and the processor's architecture."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _openblas() -> Path | None:
    # A fixed list and not ctypes.util.find_library: that one runs a compiler where it finds no cache.
    places = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/opt/openblas/lib")
    names = ("libopenblas.so.0", "libopenblas.so", "libopenblas.dylib")
    for place in map(Path, places):
        for name in names:
            found = next(iter(sorted([*place.glob(name), *place.glob(f"*-linux-gnu*/{name}")])), None)
            if found:
                return found
    return None

"""What the client's machine is, and how much of it others took while a run went on."""

from __future__ import annotations

import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

from tokenweir.bench.records.model import Environment

_PACKAGES: Final = ("tokenweir", "numpy", "msgspec", "pyarrow", "tokenizers")


def usable_cores() -> tuple[int, ...]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def describe_environment() -> Environment:
    """Return what this machine is, as the record keeps it."""
    cores = usable_cores()
    return Environment(
        host=socket.gethostname(),
        os=_os_name(),
        kernel=platform.release(),
        python=platform.python_version(),
        cpu=_cpu_name(),
        cores=len(cores),
        affinity=cores,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_1m=os.getloadavg()[0],
        versions=_versions(),
    )


class CpuTimes(NamedTuple):
    """Ticks since boot over all cores: all of them, and those that the hypervisor gave to others."""

    total: int
    stolen: int


def cpu_times() -> CpuTimes | None:
    """Return the machine's CPU times; ``None`` where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return CpuTimes(sum(ticks), ticks[7])


def steal_ratio(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """Return the share of CPU time that others took between two readings."""
    if before is None or after is None or after.total == before.total:
        return None
    return (after.stolen - before.stolen) / (after.total - before.total)


def _os_name() -> str:
    if sys.platform.startswith("linux"):
        try:
            return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
        except OSError:
            return "Linux"
    return f"{platform.system()} {platform.version()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions

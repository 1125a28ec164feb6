"""``weir doctor``: what this machine offers to a measurement, what is missing, and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import click
import msgspec

from tokenweir import __version__
from tokenweir.app import Settings
from tokenweir.bench.calibration import load_calibration
from tokenweir.cli.start import start
from tokenweir.runtime.memory import total_bytes
from tokenweir.runtime.settings import bytes_of
from tokenweir.telemetry import build, machine

State = Literal["fine", "note", "missing"]

_SPARE_DESCRIPTORS = 64
_LEAST_FREE_BYTES = 256 * 2**20
_AMPLE_FREE_BYTES = 2 * 2**30
_CONNECT_TIMEOUT_S = 2.0
_SLOW_CLOCK_NS = 1_000
_GOOD_CLOCKS = ("arch_sys_counter", "hyperv_clocksource_tsc_page", "kvm-clock", "tsc")
_DEFAULT_PORTS = {"amqp": 5672, "http": 80, "https": 443, "kafka": 9092, "postgresql": 5432, "redis": 6379}
_EXTRAS = {
    "bench": ("pyarrow", "tokenizers"),
    "studio": ("alembic", "sqlalchemy"),
    "runtime": ("grpc", "httptools", "llguidance", "prometheus_client", "uvicorn", "uvloop"),
    "demo": ("mlx", "mlx_lm"),
    "gateway": (
        "alembic",
        "cryptography",
        "h11",
        "httptools",
        "opentelemetry",
        "prometheus_client",
        "python_multipart",
        "sqlalchemy",
        "tokenizers",
        "uvicorn",
        "uvloop",
        "wsproto",
    ),
}
_OPTIONAL = ("runtime", "demo", "gateway")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. ``needed`` says whether its absence makes the doctor exit with 1."""

    name: str
    state: State
    detail: str
    mend: str = ""
    needed: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the doctor found; ``healthy`` when nothing that is needed is missing."""

    version: str
    commit: str | None
    healthy: bool
    findings: tuple[Finding, ...]


def examine(settings: Settings, *, streams: int) -> Report:
    """Look at this machine and at what ``settings`` name, for runs of up to ``streams`` open streams."""
    findings = (
        _python(),
        _descriptors(streams),
        _local_ports(streams),
        _kernel_timestamps(),
        _timerfd(),
        _clock(),
        _cores(),
        _blas(),
        _mlx(),
        _memory(settings),
        _calibration(),
        _disk(settings.stores.runs),
        *_extras(),
        *_services(settings),
    )
    healthy = not any(one.needed and one.state == "missing" for one in findings)
    return Report(version=__version__, commit=build.commit(), healthy=healthy, findings=findings)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option(
    "--streams",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Concurrent streams that a run should be able to hold.",
)
@click.pass_context
def command(ctx: click.Context, *, as_json: bool, streams: int) -> None:
    """Say what this machine offers, what is missing and how to mend it.

    Exits with 1 when something that is needed is missing.
    """
    report = examine(start(), streams=streams)
    click.echo(msgspec.json.format(msgspec.json.encode(report)).decode() if as_json else _as_text(report))
    ctx.exit(0 if report.healthy else 1)


def _as_text(report: Report) -> str:
    colours = {"fine": "green", "note": "yellow", "missing": "red"}
    width = max(len(one.name) for one in report.findings)
    lines: list[str] = []
    for one in report.findings:
        lines.append(
            f"{click.style(f'{one.state:8}', fg=colours[one.state])}{one.name:{width}}  {one.detail}"
        )
        if one.mend:
            lines.append(f"{'':{width + 8}}  mend: {one.mend}")
    count = sum(one.state == "missing" for one in report.findings)
    lines.append("Nothing is missing." if not count else f"Missing: {count}.")
    return "\n".join(lines)


def _python() -> Finding:
    detail = f"{platform.python_implementation()} {platform.python_version()} on {machine.system()}"
    return Finding(name="python", state="fine", detail=detail, needed=True)


def _descriptors(streams: int) -> Finding:
    limits = machine.descriptors()
    need = streams + _SPARE_DESCRIPTORS
    enough = limits.hard >= need
    raised = " (a run raises the soft limit itself)" if limits.soft < need <= limits.hard else ""
    return Finding(
        name="descriptors",
        state="fine" if enough else "missing",
        detail=f"soft {limits.soft}, hard {limits.hard}; {streams} streams need {need}{raised}",
        mend=""
        if enough
        else f"raise the hard limit to {need}: 'ulimit -Hn {need}' as root, or LimitNOFILE={need}",
        needed=True,
    )


def _local_ports(streams: int) -> Finding:
    ports = machine.local_ports()
    enough = ports is None or ports >= streams
    return Finding(
        name="local ports",
        state="fine" if enough else "note",
        detail="not stated by this system" if ports is None else f"{ports} for connections to one address",
        mend="" if enough else "widen net.ipv4.ip_local_port_range with sysctl",
    )


def _kernel_timestamps() -> Finding:
    stamp = machine.kernel_stamp()
    if stamp is None:
        return Finding(
            name="kernel timestamps",
            state="note",
            detail="not given for TCP; arrival is stamped in user space, and each record says so",
            mend="run the client on Linux",
        )
    detail = f"SO_TIMESTAMPNS works on TCP; a read here ended {stamp.delay_ns / 1000:.0f} µs after its stamp"
    return Finding(name="kernel timestamps", state="fine", detail=detail)


def _timerfd() -> Finding:
    if machine.timerfd():
        return Finding(name="timerfd", state="fine", detail="available: requests are sent to the microsecond")
    detail = "not available; requests are paced by the poll timeout, to about a millisecond"
    return Finding(name="timerfd", state="note", detail=detail, mend="run the client on Linux")


def _clock() -> Finding:
    reading = machine.clock()
    slow = reading.read_ns > _SLOW_CLOCK_NS or (
        reading.source is not None and reading.source not in _GOOD_CLOCKS
    )
    return Finding(
        name="clock",
        state="note" if slow else "fine",
        detail=f"{reading.source or 'source not stated'}, {reading.read_ns:.0f} ns per look",
        mend="choose a faster clock source (tsc) with the kernel parameter clocksource=" if slow else "",
    )


def _cores() -> Finding:
    found = machine.cores()
    quota = "" if found.quota is None else f", quota {found.quota:g}"
    few = min(found.usable, found.quota or found.usable) < 2  # noqa: PLR2004 - one for the client, one for the server
    return Finding(
        name="cores",
        state="note" if few else "fine",
        detail=f"{found.usable} of {found.machine} usable{quota}",
        mend="measure a server on another machine, or give this process a second core" if few else "",
    )


def _blas() -> Finding:
    found = machine.blas()
    mlx_here = find_spec("mlx") is not None and sys.platform == "linux"
    lacking = mlx_here and found.preloadable is None
    slow = "; mlx uses its slow reference BLAS" if lacking else ""
    other = f"; preloadable for mlx: {found.preloadable}" if found.preloadable else slow
    return Finding(
        name="blas",
        state="note" if lacking else "fine",
        detail=f"numpy uses {found.numpy}{other}",
        mend="apt-get install libopenblas0, for models that mlx serves on this CPU" if lacking else "",
    )


def _mlx() -> Finding:
    if find_spec("mlx") is None or find_spec("mlx_lm") is None:
        return Finding(
            name="mlx",
            state="note",
            detail="not installed: weir runtime can serve simulated models only",
            mend="pip install 'tokenweir[runtime]'; MLX runs on Apple silicon and on Linux",
        )
    device = "Metal" if sys.platform == "darwin" else "CPU"
    sees = f", mlx-vlm {version('mlx-vlm')} for images" if find_spec("mlx_vlm") is not None else ""
    detail = f"mlx {version('mlx')} on the {device}, mlx-lm {version('mlx-lm')}{sees}"
    return Finding(name="mlx", state="fine", detail=detail)


def _memory(settings: Settings) -> Finding:
    total = total_bytes()
    limit = bytes_of(settings.runtime.memory_limit, total)
    enough = limit <= total
    return Finding(
        name="memory",
        state="fine" if enough else "note",
        detail=f"{total / 2**30:.1f} GiB; weir runtime takes up to {limit / 2**30:.1f} GiB of it for models",
        mend="" if enough else "lower runtime.memory_limit",
    )


def _calibration() -> Finding:
    last = load_calibration()
    if last is None:
        return Finding(
            name="calibration",
            state="note",
            detail="this client has not been measured on this machine",
            mend="weir bench calibrate",
        )
    day = datetime.fromtimestamp(last.at / 1e9, tz=UTC).date()
    detail = f"{day}: TTFT off by {last.ttft_error_p99_ms:.3f} ms (p99) at {last.streams} streams"
    return Finding(name="calibration", state="fine", detail=f"{detail}, {last.timestamp_source} timestamps")


def _disk(runs: Path) -> Finding:
    place = runs.expanduser().absolute()
    place = next(one for one in (place, *place.parents) if one.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding(
            name="disk",
            state="missing",
            detail=f"{place} cannot be written to",
            mend="set stores.runs to a directory that can, or mend its permissions",
            needed=True,
        )
    free = shutil.disk_usage(place).free
    state: State = "fine" if free >= _AMPLE_FREE_BYTES else "note" if free >= _LEAST_FREE_BYTES else "missing"
    return Finding(
        name="disk",
        state=state,
        detail=f"{free / 2**30:.1f} GiB free for runs in {runs}",
        mend="" if state == "fine" else "free some space, or set stores.runs to another file system",
        needed=True,
    )


def _extras() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        yield Finding(
            name=f"extra {extra}",
            state="missing" if lacking else "fine",
            detail=f"not installed: {', '.join(lacking)}" if lacking else ", ".join(modules),
            mend=f"pip install 'tokenweir[{extra}]'" if lacking else "",
            needed=extra not in _OPTIONAL,
        )


def _services(settings: Settings) -> Iterator[Finding]:
    yield _store("records", settings.stores.records)
    for endpoint in settings.endpoints:
        yield _reachable(
            f"endpoint {endpoint.name}", endpoint.url, "start the server, or mend the endpoint's url"
        )


def _store(name: str, url: str) -> Finding:
    label = f"store {name}"
    scheme, _, path = url.partition("://")
    if not scheme.startswith("sqlite"):
        return _reachable(label, url, f"start the service, or mend stores.{name}")
    file = Path(path.removeprefix("/")).expanduser().absolute()
    place = next(one for one in (file.parent, *file.parents) if one.exists())
    usable = place.is_dir() and os.access(place, os.W_OK)
    return Finding(
        name=label,
        state="fine" if usable else "missing",
        detail=f"SQLite at {file}" if usable else f"{place} cannot be written to",
        mend="" if usable else f"set stores.{name} to a file in a directory that can",
        needed=True,
    )


def _reachable(name: str, url: str, mend: str) -> Finding:
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
    if not parts.hostname or port is None:
        return Finding(
            name=name, state="missing", detail="its URL names no host and port", mend=mend, needed=True
        )
    try:
        socket.create_connection((parts.hostname, port), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        detail = f"{parts.hostname}:{port} does not answer: {error.strerror or error}"
        return Finding(name=name, state="missing", detail=detail, mend=mend, needed=True)
    return Finding(name=name, state="fine", detail=f"{parts.hostname}:{port} answers", needed=True)

"""The types of ``run.json``; ``docs/formats.md`` is their contract and ``docs/run.schema.json`` is made from them."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenweir.core.provenance import Provenance
from tokenweir.core.requests import Json

SCHEMA_VERSION = 1

RunStatus = Literal["completed", "cancelled", "failed"]
Trust = Literal["trusted", "client-bound"]
Number = float | Literal["inf"] | None
"""A statistic: ``None`` where it is undefined, ``inf`` where failures count as infinitely slow."""


class MetricSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one load point. Latencies are in milliseconds. ``n`` is the number of values.

    A rate has its value over the measured window in ``mean`` and no percentiles. ``note`` says why a value is
    absent or what was left out of it.
    """

    unit: str
    direction: Literal["lower", "higher", "none"]
    definition: str
    n: int
    mean: Number = None
    min: Number = None
    p50: Number = None
    p90: Number = None
    p95: Number = None
    p99: Number = None
    p999: Number = None
    max: Number = None
    note: str = ""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests of a load point ended how, and how many were trimmed.

    ``planned`` may exceed ``sent`` when a duration or Ctrl-C ended the load first; ``None`` for no fixed number.
    ``recompiled`` requests are left out as warm-up (SGLang-JAX, ``cache_miss_count`` > 0).
    """

    planned: int | None
    sent: int
    completed: int
    failed: int
    cancelled: int
    trimmed_warmup: int
    trimmed_cooldown: int
    recompiled: int
    measured: int
    errors: dict[str, int]


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """The load that was asked for beside the load that was delivered, inside the measured window."""

    asked: str
    asked_rate: float | None
    rate: float
    in_flight_mean: float
    in_flight_max: int


class Reads(msgspec.Struct, frozen=True, kw_only=True):
    """How the answers came in. A gap that touches a read holding several events is left out of ITL and counted."""

    reads: int
    chunks: int
    multi_event_reads: int
    gaps: int
    gaps_excluded: int


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The client's own conduct: what it cost and how late it was. CPU is user + system of all workers.

    ``cpu_s`` is capture and finishing together, ``capture_cpu_s`` the capture alone.
    ``cpu_busy_max`` is the busiest worker's CPU time over wall time. ``rss_max_bytes`` sums all processes.
    ``spin_s`` is the CPU time that captures spent awake before due requests; it is idle time by choice, and in none of
    the others.
    """

    workers: int
    timestamp_source: Literal["kernel", "user"]
    dispatch_lag_p50_ms: float | None
    dispatch_lag_p99_ms: float | None
    dispatch_lag_max_ms: float | None
    cpu_s: float
    capture_cpu_s: float
    cpu_busy_max: float
    rss_max_bytes: int
    clock_steps: int
    steal_ratio: float | None
    spin_s: float = 0.0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the numbers speak of the server or of the client, with the reasons."""

    trust: Trust
    reasons: tuple[str, ...]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The measured window, nanoseconds since the run's start."""

    start_ns: int
    end_ns: int
    trimmed: bool


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What one load point came to."""

    window: Window
    counts: Counts
    delivered: Delivered
    reads: Reads
    client: Client
    verdict: Verdict
    metrics: dict[str, MetricSummary]


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """One load point of a run; ``index`` is the ``load`` column of the tables."""

    index: int
    arrival: str
    status: RunStatus
    summary: Summary


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where the client ran. ``load_1m`` is the load average at the start."""

    host: str
    os: str
    kernel: str
    python: str
    cpu: str
    cores: int
    affinity: tuple[int, ...]
    memory_bytes: int
    load_1m: float
    versions: dict[str, str]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The client's error and ceiling on this machine, measured against the simulator's true send times."""

    at: int
    timestamp_source: Literal["kernel", "user"]
    streams: int
    ttft_error_p50_ms: float
    ttft_error_p99_ms: float
    itl_error_p99_ms: float
    dispatch_lag_p99_ms: float
    chunks_per_cpu_s: float
    rows_per_cpu_s: float
    requests_per_cpu_s: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``run.json``. ``summary`` is ``loads[0].summary`` when there is one load, else ``None``.

    ``spec`` is the resolved experiment (subject, workload, measurement) without secrets.
    """

    schema_version: int
    run_id: str
    status: RunStatus
    started_at: int
    ended_at: int
    labels: dict[str, str]
    spec: dict[str, Json]
    provenance: Provenance
    environment: Environment
    calibration: Calibration | None
    loads: tuple[LoadResult, ...]
    summary: Summary | None
    files: dict[str, str]
    notes: tuple[str, ...] = ()

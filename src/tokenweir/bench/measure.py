"""Measuring one experiment: endpoint asked, workload planned, load points run one after another.

Nothing here imports Arrow: the parent stays small while it measures, and :mod:`tokenweir.bench.closing` turns
what the workers left into tables afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tokenweir.backends.registry import backend
from tokenweir.bench.arrivals import Arrival
from tokenweir.bench.crew import Crew, Progress
from tokenweir.bench.endpoint import Endpoint
from tokenweir.bench.environment import cpu_times, describe_environment, steal_ratio, usable_cores
from tokenweir.bench.live import View
from tokenweir.bench.options import BenchOptions, resolve
from tokenweir.bench.plan import plan_workload
from tokenweir.bench.prepare import LoadPoint, Means, Prepared, Recipient, prepare
from tokenweir.bench.records.model import Environment, RunStatus
from tokenweir.bench.settings import Settings
from tokenweir.bench.stopping import Stopping
from tokenweir.bench.target import Target, parse_target
from tokenweir.bench.tokenizers import find_tokenizer
from tokenweir.bench.workload import Workload
from tokenweir.core.errors import CancelledError, DescriptorError, DiskFullError, EndpointError, WeirError
from tokenweir.core.spec import ExperimentSpec, public_url
from tokenweir.ports.backend import Backend, Identity
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.bench")
_FLUSHED: Final = frozenset({"sglang", "sglang_jax"})
"""Engines with a prefix cache that is emptied before a load point, so that each starts alike."""


class RunPoint(NamedTuple):
    """A load point that was run. Times are CLOCK_MONOTONIC ns. The next one numbers requests from ``next_request``."""

    load: int
    arrival: Arrival
    folders: tuple[Path, ...]
    planned: int | None
    start_ns: int
    status: RunStatus
    steal_ratio: float | None
    next_request: int


@dataclass(kw_only=True)
class Measurement:
    """A run between its first request and its record. ``failure`` is what ended it early, if anything did."""

    options: BenchOptions
    settings: Settings
    run_dir: Path
    spec: ExperimentSpec
    identity: Identity
    workload: Workload
    environment: Environment
    kernel_stamps: bool
    started_at: int
    points: list[RunPoint] = field(default_factory=list[RunPoint])
    notes: list[str] = field(default_factory=list[str])
    failure: WeirError | None = None

    @property
    def work_dir(self) -> Path:
        """Where the workers leave their spools until the tables are written."""
        return self.run_dir / "work"

    def public_facts(self) -> dict[str, str]:
        """Return what a log may say of the run: no key, no prompt."""
        subject = self.spec.subject
        return {
            "backend": subject.backend,
            "url": public_url(subject.url),
            "model": subject.model,
            "config_hash": self.spec.config_hash,
        }

    @property
    def status(self) -> RunStatus:
        """``failed`` when something broke, else ``cancelled`` when a load point was, else ``completed``."""
        if self.failure is not None:
            return "failed"
        return "cancelled" if any(point.status == "cancelled" for point in self.points) else "completed"


class Ready(NamedTuple):
    """What the endpoint and the options come to."""

    codec: Backend
    endpoint: Endpoint
    target: Target
    headers: tuple[tuple[str, str], ...]
    means: Means


def begin(
    options: BenchOptions, settings: Settings, *, kernel_stamps: bool, portable: bool = False
) -> tuple[Measurement, Ready]:
    """Ask the endpoint who it is, and plan the run; nothing is written yet.

    Raises:
        EndpointError: it cannot be reached, refuses, or does not serve the model.
        InputError: the options contradict themselves or each other.
    """
    codec = backend(options.backend)
    key = options.key.read() if options.key is not None else None
    endpoint = Endpoint(options.url, codec, key=key, headers=dict(options.header))
    target = parse_target(options.url)
    endpoint.check(options.model or "")
    identity = endpoint.identity()
    model = options.model or identity.model
    tokenizer = find_tokenizer(options.tokenizer, model_path=identity.model_path)
    workload = plan_workload(options, tokenizer, model=model or "")
    spec = resolve(options, corpus=workload.corpus, identity=identity)
    headers = tuple(options.header.items())
    if key is not None:
        headers = (*headers, ("authorization", f"Bearer {key}"))
    wanted = options.workers if options.workers is not None else settings.workers
    cores = len(usable_cores())
    workers = wanted or max(1, cores - 1 if target.local else cores)
    measurement = Measurement(
        options=options,
        settings=settings,
        run_dir=Path(),
        spec=spec,
        identity=identity,
        workload=workload,
        environment=describe_environment(),
        kernel_stamps=kernel_stamps,
        started_at=0,
    )
    if not tokenizer.exact:
        measurement.notes.append(
            "no tokenizer of the model is known: token counts that the server does not report are estimated"
        )
    if not kernel_stamps:
        measurement.notes.append("arrivals are stamped in user space: this system gives no kernel timestamps")
    means = Means(workers, kernel_stamps, portable, verify_tls=True)
    return measurement, Ready(codec, endpoint, target, headers, means)


def measure(measurement: Measurement, ready: Ready, view: View) -> None:
    """Run every load point. What goes wrong on the way is kept in ``measurement.failure``, with what was measured.

    Raises:
        KeyboardInterrupt: the user asked twice to stop.
    """
    options = measurement.options
    measurement.started_at = time.time_ns()
    run_start_ns: int | None = None
    with Stopping() as stopping, contextlib.closing(view):
        for load, arrival in enumerate(options.arrivals):
            if stopping.asked:
                break
            point = LoadPoint(
                load=load,
                first_request=measurement.points[-1].next_request if measurement.points else 0,
                arrival=arrival,
                requests=options.request_limit,
                duration_ns=options.duration_ns,
                timeout_ns=options.timeout_ns,
                seed=options.seed,
            )
            try:
                prepared = prepare(
                    measurement.work_dir / f"load-{load}",
                    point,
                    measurement.workload,
                    Recipient(ready.codec, ready.target, ready.headers),
                    ready.means,
                )
                _flush(measurement, ready)
                run_start_ns = _run(measurement, prepared, point, run_start_ns, view, stopping)
            except (WeirError, OSError) as error:
                measurement.failure = error if isinstance(error, WeirError) else _of_system(error)
                _LOG.debug("load failed", load=load, code=measurement.failure.code, reason=str(error))
                break
        if stopping.asked and not measurement.points:
            measurement.failure = CancelledError("stopped before the first request")


def _run(
    measurement: Measurement,
    prepared: Prepared,
    point: LoadPoint,
    run_start_ns: int | None,
    view: View,
    stopping: Stopping,
) -> int | None:
    """Run one load point; return the run's start."""
    measurement.notes.extend(note for note in prepared.notes if note not in measurement.notes)
    view.begin(point.arrival.text, prepared.planned, point.duration_ns)
    before = cpu_times()
    cancelled = False
    with Crew(prepared.plans, prepared.finish_plans) as crew, prepared.payloads:
        if not crew.await_ready(lambda: stopping.asked):
            return run_start_ns
        start_ns = crew.start(run_start_ns)
        _LOG.debug("load started", load=point.load, arrival=point.arrival.text, workers=len(prepared.plans))

        def observe(progress: Progress) -> None:
            nonlocal cancelled
            if stopping.asked and not cancelled:
                cancelled = True
                crew.cancel()
            view.show(progress)

        try:
            crew.wait(observe)
            if crew.died:
                message = f"a process of the run was killed (signal {-crew.died[0]})"
                raise WeirError(
                    message, mend="see the system's log, perhaps for want of memory; the rest is kept"
                )
        finally:
            failed = bool(crew.died)
            progress = crew.progress(finishing=True)
            _LOG.debug("load ended", load=point.load, completed=progress.completed, failed=progress.failed)
            for status in crew.died:
                _LOG.error("worker died", status=status)
            measurement.points.append(
                RunPoint(
                    load=point.load,
                    arrival=point.arrival,
                    folders=tuple(Path(plan.folder) for plan in prepared.plans),
                    planned=prepared.planned,
                    start_ns=start_ns,
                    status="cancelled" if cancelled else "failed" if failed else "completed",
                    steal_ratio=steal_ratio(before, cpu_times()),
                    next_request=point.first_request + prepared.total * crew.cycles(),
                )
            )
    return start_ns if run_start_ns is None else run_start_ns


def _of_system(error: OSError) -> WeirError:
    """Return what a refusal of the operating system between load points comes to."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return DiskFullError(
            f"the next load point cannot be written: {error.strerror}", mend="free room, or use --out"
        )
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return DescriptorError(
            f"the next load point cannot begin: {error.strerror}", mend="raise 'ulimit -n'"
        )
    return WeirError(f"the next load point cannot begin: {error}")


def _flush(measurement: Measurement, ready: Ready) -> None:
    if ready.codec.kind not in _FLUSHED:
        return
    try:
        ready.endpoint.act("flush")
    except EndpointError as error:
        note = f"the engine's cache could not be flushed before a load point: {error.message}"
        if note not in measurement.notes:
            measurement.notes.append(note)

"""From a workload and an arrival process to the plans of one load point's workers."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.arrivals import Arrival, Concurrency, schedule
from tokenweir.bench.engine.plan import FinishPlan, WorkerPlan, write_payloads
from tokenweir.bench.target import Target, render
from tokenweir.bench.workload import Workload
from tokenweir.core.errors import DescriptorError, SpecError
from tokenweir.ports.backend import Codec

Ints = npt.NDArray[np.int64]

_LIST_ROWS: Final = 20_000
"""A closed loop that only a duration bounds repeats a list of about this many requests."""
_OTHER_DESCRIPTORS: Final = 64
"""Descriptors that a worker needs beside its streams."""
_WARM_LEAST: Final = 64
_WARM_MOST: Final = 1024
_SPARE_OPEN: Final = 32


class LoadPoint(NamedTuple):
    """One load point to run: ``load`` counts them in the run, and its requests are numbered from ``first_request``."""

    load: int
    first_request: int
    arrival: Arrival
    requests: int | None
    duration_ns: int | None
    timeout_ns: int
    seed: int


class Means(NamedTuple):
    """What this machine brings: workers, whether the kernel stamps, and whether to avoid Linux's own calls."""

    workers: int
    kernel_stamps: bool
    portable_poller: bool
    verify_tls: bool


class Recipient(NamedTuple):
    """Whom requests are rendered for."""

    codec: Codec
    target: Target
    headers: tuple[tuple[str, str], ...]


class Prepared(NamedTuple):
    """A load point ready to run. ``payloads`` stays open until the workers have it; ``total`` requests are listed."""

    plans: tuple[WorkerPlan, ...]
    finish_plans: tuple[FinishPlan, ...]
    payloads: BinaryIO
    total: int
    planned: int | None
    notes: tuple[str, ...]


def prepare(
    folder: Path, point: LoadPoint, workload: Workload, recipient: Recipient, means: Means
) -> Prepared:
    """Render the requests and write each worker's share below ``folder``.

    Raises:
        SpecError: the engine cannot be asked this, or nothing bounds the load.
        DescriptorError: more streams are asked for than descriptors may be had.
    """
    agenda = draw_up(point, workload)
    workers = agenda.workers(means.workers)
    allow_descriptors(-(-agenda.slots // workers) + _OTHER_DESCRIPTORS)
    folder.mkdir(parents=True, exist_ok=True)
    ends = folder / "payload-ends.i64"
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it when the workers have it
    write_payloads(file, ends, _payloads(agenda, workload, recipient))
    shares = agenda.deal(folder, workers)
    for share in shares:
        share.write()
    repeat = agenda.planned is None
    notes = ()
    if workload.asking.unique_prompts and repeat:
        notes = (f"unique prompts come again after {agenda.total} requests",)
    return Prepared(
        tuple(
            _worker_plan(share, point, recipient.target, means, (file.fileno(), ends), repeat=repeat)
            for share in shares
        ),
        tuple(_finish_plan(share, agenda, workload, recipient.codec) for share in shares),
        file,
        agenda.total,
        agenda.planned,
        notes,
    )


class Agenda(NamedTuple):
    """What a load point sends and when, before it is dealt out to workers.

    ``rows`` is the table of :class:`FinishPlan`; ``keys`` has the (sample, repeat) of each payload. ``times`` are
    nanoseconds after the start, ``None`` for a closed loop without a rate cap. ``slots`` is the concurrency, 0 for an
    open loop. ``planned`` is how many requests there will be, ``None`` where the list is begun again until time is
    up.
    """

    load: int
    rows: Ints
    keys: Ints
    times: Ints | None
    slots: int
    planned: int | None

    @property
    def total(self) -> int:
        """How many requests are listed."""
        return len(self.rows)

    def workers(self, most: int) -> int:
        """Return among how many workers to deal it out: none without a stream or a request."""
        return max(1, min(most, self.slots or self.total, self.total))

    def deal(self, folder: Path, workers: int) -> list[_Share]:
        """Return each worker's part, to be written below ``folder``."""
        return [
            _Share(
                worker=worker,
                home=folder / f"worker-{worker}",
                rows=self.rows[worker::workers],
                times=None if self.times is None else self.times[worker::workers],
                slots=len(range(worker, self.slots, workers)),
                closed=bool(self.slots),
                share=1 / workers,
            )
            for worker in range(workers)
        ]


def draw_up(point: LoadPoint, workload: Workload) -> Agenda:
    """Return what a load point sends.

    Raises:
        SpecError: nothing is due within its time.
    """
    times = schedule(
        point.arrival,
        seed=point.seed,
        load=point.load,
        requests=point.requests,
        duration_ns=point.duration_ns,
    )
    slots = point.arrival.slots if isinstance(point.arrival, Concurrency) else 0
    scheduled = not slots or bool(len(times))
    planned = len(times) if scheduled else point.requests
    total = planned if planned is not None else _whole_cycles(len(workload))
    if not total:
        message = f"the load {point.arrival.text} holds no request within its time"
        raise SpecError(message, mend="give it a longer --duration or a higher rate")
    order = workload.order(total, point.seed, point.load)
    rows, keys = _table(workload, order.sample, order.repeat)
    rows[:, 0] += point.first_request
    return Agenda(point.load, rows, keys, times if scheduled else None, slots, planned)


class _Share(NamedTuple):
    """One worker's part of a load point; ``times`` is ``None`` for a closed loop without a rate cap."""

    worker: int
    home: Path
    rows: Ints
    times: Ints | None
    slots: int
    closed: bool
    share: float

    @property
    def requests(self) -> Path:
        return self.home / "requests.npy"

    @property
    def payload_of(self) -> Path:
        return self.home / "payload-of.i64"

    @property
    def schedule(self) -> Path | None:
        return None if self.times is None else self.home / "schedule.i64"

    def write(self) -> None:
        """Write what the worker and its finishing process read."""
        self.home.mkdir()
        np.save(self.requests, self.rows)
        self.payload_of.write_bytes(self.rows[:, 1].tobytes())
        if self.schedule is not None and self.times is not None:
            self.schedule.write_bytes(self.times.tobytes())


def _warm(arrival: Arrival, share: _Share) -> int:
    """Return how many connections an open loop opens ahead: a second's worth of requests, within bounds."""
    expected = (arrival.asked_rate or 0.0) * share.share
    return round(min(max(expected, _WARM_LEAST), _WARM_MOST))


def _worker_plan(
    share: _Share, point: LoadPoint, target: Target, means: Means, payloads: tuple[int, Path], *, repeat: bool
) -> WorkerPlan:
    fd, ends = payloads
    return WorkerPlan(
        worker=share.worker,
        load=point.load,
        folder=str(share.home),
        host=target.host,
        port=target.port,
        tls=target.tls,
        verify_tls=means.verify_tls,
        server_name=target.host,
        payloads_fd=fd,
        payload_ends=str(ends),
        payload_of=str(share.payload_of),
        requests=len(share.rows),
        schedule=None if share.schedule is None else str(share.schedule),
        slots=share.slots,
        duration_ns=point.duration_ns,
        repeat=repeat,
        timeout_ns=point.timeout_ns,
        warm_connections=share.slots or min(_warm(point.arrival, share), len(share.rows)),
        spare_connections=0 if share.closed else _SPARE_OPEN,
        kernel_stamps=means.kernel_stamps,
        portable_poller=means.portable_poller,
    )


def _finish_plan(share: _Share, agenda: Agenda, workload: Workload, codec: Codec) -> FinishPlan:
    first_sample, last_repeat = int(agenda.rows[0, 2]), int(agenda.rows[-1, 3])
    return FinishPlan(
        worker=share.worker,
        load=agenda.load,
        folder=str(share.home),
        backend=codec.kind,
        request=msgspec.json.encode(workload.request(first_sample, 0, agenda.load)),
        start_ns=0,
        requests=str(share.requests),
        cycle_requests=agenda.total,
        cycle_repeats=last_repeat + 1,
        true_times=codec.kind == "sim",
        tokenizer=_tokenizer_path(workload),
    )


def allow_descriptors(needed: int) -> None:
    """Raise the soft limit of descriptors as far as it goes.

    Raises:
        DescriptorError: it does not go as far as ``needed``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = needed if hard == resource.RLIM_INFINITY else hard
    if limit < needed:
        message = f"{needed} file descriptors are needed in a worker and {hard} may be opened"
        raise DescriptorError(
            message, mend=f"run 'ulimit -n {needed}' as a user who may, or ask for fewer streams"
        )
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def spare_descriptors() -> int:
    """Return how many streams a worker may have open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard - _OTHER_DESCRIPTORS


def _whole_cycles(samples: int) -> int:
    return samples * max(1, -(-_LIST_ROWS // samples))


def _table(
    workload: Workload, sample: npt.NDArray[np.int32], repeat: npt.NDArray[np.int32]
) -> tuple[Ints, Ints]:
    """Return the rows of a worker's table, and the (sample, repeat) of each payload."""
    count = len(sample)
    pairs = np.stack(
        [sample, repeat if workload.asking.unique_prompts else np.zeros(count, np.int32)], axis=1
    )
    keys, payload = np.unique(pairs.astype(np.int64), axis=0, return_inverse=True)
    rows = np.empty((count, 5), np.int64)
    rows[:, 0] = np.arange(count)
    rows[:, 1] = payload.reshape(-1)
    rows[:, 2] = sample
    rows[:, 3] = repeat
    rows[:, 4] = workload.input_tokens[sample]
    return rows, keys


def _payloads(agenda: Agenda, workload: Workload, recipient: Recipient) -> Iterator[bytes]:
    codec, target, headers = recipient
    for sample, repeat in agenda.keys.tolist():
        yield render(codec.encode(workload.request(sample, repeat, agenda.load)), target, headers)


def _tokenizer_path(workload: Workload) -> str | None:
    path = getattr(workload.tokenizer, "path", None)
    return None if path is None else str(path)

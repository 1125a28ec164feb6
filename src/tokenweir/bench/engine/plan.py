"""What one worker is told: everything it needs for one load point, in one small file and two tables."""

from __future__ import annotations

import mmap
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.core.errors import RecordError


class WorkerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's share of one load point.

    ``folder`` receives segments and rows. ``payloads`` is the prefix of the rendered requests' files
    (:func:`write_payloads`); ``requests`` is an ``.npy`` of rows (request number, payload, sample, repeat,
    input tokens or −1, output tokens planned or −1), in sending order; ``schedule`` is an ``.npy`` of nanoseconds after the start,
    or ``None`` for a closed loop. ``slots`` is this worker's share of the concurrency,
    0 for an open loop, which keeps ``spare_connections`` ready beyond those in use.
    A closed loop with a duration repeats the list until it ends; the numbers go on.
    """

    worker: int
    load: int
    folder: str
    host: str
    port: int
    tls: bool
    verify_tls: bool
    server_name: str
    payloads: str
    requests: str
    schedule: str | None
    slots: int
    duration_ns: int | None
    timeout_ns: int
    warm_connections: int
    spare_connections: int
    kernel_stamps: bool
    portable_poller: bool


class FinishPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the finishing process of one worker is told. ``start_ns`` is the run's start, CLOCK_MONOTONIC.

    ``request`` is a GenerateRequest as JSON, all requests of a load being alike to the decoder.
    Each time a closed loop begins its list again, request numbers grow by ``cycle_requests`` and repeats by
    ``cycle_repeats``. ``true_times`` says that chunks carry the simulator's send times.
    """

    worker: int
    load: int
    folder: str
    backend: str
    request: bytes
    start_ns: int
    requests: str
    cycle_requests: int
    cycle_repeats: int
    true_times: bool
    tokenizer: str | None


def write_plan(path: Path, plan: WorkerPlan | FinishPlan) -> None:
    """Write a plan as JSON."""
    path.write_bytes(msgspec.json.encode(plan))


def write_payloads(prefix: Path, payloads: list[bytes]) -> None:
    """Write rendered requests one after another, and where each begins."""
    ends = np.zeros(len(payloads) + 1, np.int64)
    np.cumsum([len(payload) for payload in payloads], out=ends[1:])
    with prefix.with_suffix(".bin").open("wb") as file:
        file.writelines(payloads)
    np.save(prefix.with_suffix(".npy"), ends)


class Payloads:
    """Rendered requests, mapped: memory holds only what is being sent."""

    __slots__ = ("_ends", "_view")

    def __init__(self, prefix: Path) -> None:
        self._ends: list[int] = load_ints(prefix.with_suffix(".npy")).tolist()
        with prefix.with_suffix(".bin").open("rb") as file:
            self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __getitem__(self, index: int) -> memoryview:
        """Return the bytes of one request: head and body."""
        return self._view[self._ends[index] : self._ends[index + 1]]


def load_ints(path: Path) -> npt.NDArray[np.int64]:
    """Map an ``.npy`` table of int64. Raises RecordError for another type."""
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    if table.dtype != np.int64:
        message = f"{str(path)!r} holds {table.dtype}, not int64"
        raise RecordError(message, mend="delete the run directory and run again")
    return table

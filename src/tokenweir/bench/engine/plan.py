"""What one worker is told: everything it needs for one load point, in one small file and two tables."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

_FEW: Final = 16_384


class WorkerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's share of one load point.

    ``folder`` receives segments and rows. ``payloads_fd`` is an inherited descriptor of the rendered requests.
    Files of int64 say where each ends (``payload_ends``), which one each of the ``requests`` sends
    (``payload_of``) and when, in nanoseconds after the start (``schedule``; ``None`` for a closed loop without a
    rate cap). ``slots`` is this worker's share of the concurrency, 0 for an open loop, which keeps
    ``spare_connections`` ready beyond those in use.
    ``repeat`` begins the list again when it is through, until ``duration_ns`` is over; the numbers go on.
    """

    worker: int
    load: int
    folder: str
    host: str
    port: int
    tls: bool
    verify_tls: bool
    server_name: str
    payloads_fd: int
    payload_ends: str
    payload_of: str
    requests: int
    schedule: str | None
    slots: int
    duration_ns: int | None
    repeat: bool
    timeout_ns: int
    warm_connections: int
    spare_connections: int
    kernel_stamps: bool
    portable_poller: bool


class FinishPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the finishing process of one worker is told. ``start_ns`` is the run's start, CLOCK_MONOTONIC.

    ``requests`` is an ``.npy`` of rows (request number, payload, sample, repeat, input tokens or −1), in sending
    order.
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


def write_payloads(file: BinaryIO, ends: Path, payloads: Iterable[bytes]) -> None:
    """Write rendered requests one after another, and to ``ends`` where each ends.

    ``file`` has no name on disk, because requests carry the endpoint's key.
    """
    lengths: list[int] = []
    for payload in payloads:
        file.write(payload)
        lengths.append(len(payload))
    file.flush()
    ends.write_bytes(array("q", accumulate(lengths)).tobytes())


class Payloads:
    """Rendered requests, mapped: memory holds only what is being sent."""

    __slots__ = ("_ends", "_view")

    def __init__(self, fd: int, ends: Path) -> None:
        self._ends = load_ints(ends)
        self._view = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> memoryview:
        """Return the bytes of one request: head and body."""
        return self._view[self._ends[index - 1] if index else 0 : self._ends[index]]


def load_payloads(fd: int, ends: Path) -> Sequence[memoryview] | Payloads:
    """Return the rendered requests by index; a few are cut ahead of time, many as they are asked for."""
    payloads = Payloads(fd, ends)
    count = len(payloads)
    return [payloads[index] for index in range(count)] if count <= _FEW else payloads


def load_ints(path: Path) -> array[int]:
    """Read a file of int64."""
    values = array("q")
    values.frombytes(path.read_bytes())
    return values

"""What the contract tests of the gateway's stores share: a bundle of adapters, and small makers of values."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from tokenweir.core.clock import VirtualClock
from tokenweir.core.ids import uuid7
from tokenweir.core.quota import Amounts, Limit, Scope, Unit, Window
from tokenweir.ports.eventlog import EventLog
from tokenweir.ports.intake import Acceptance, Intake, Mode
from tokenweir.ports.ledger import Charge, Ledger, LedgerRow
from tokenweir.ports.queue import DeadLetters, JobQueue
from tokenweir.ports.quota import QuotaStore, QuotaUpkeep, Reserve
from tokenweir.ports.requests import RequestLookup, RequestStore, RequestUpkeep

KEY, USER, TEAM = b"k" * 16, b"u" * 16, b"t" * 16
LEASE_NS = 60_000_000_000
ABSENT: Any = None
"""In the place of an adapter that a test of another does not touch."""


class Quota(QuotaStore, QuotaUpkeep, Protocol):
    """A quota store with its upkeep."""


class Queue(JobQueue, DeadLetters, Protocol):
    """A job queue with its dead letters."""


class Requests(RequestStore, RequestLookup, RequestUpkeep, Protocol):
    """A request store with its upkeep."""


async def nothing_waits() -> None:
    """Return at once: what is accepted is queued in the same transaction."""


@dataclass(frozen=True)
class Stores:
    """One set of adapters over the same data."""

    quota: Quota
    ledger: Ledger
    intake: Intake
    requests: Requests
    queue: Queue
    events: EventLog
    published: Callable[[], Awaitable[None]] = nothing_waits
    """Returns when the jobs of what was accepted are in the queue: where it is a store of its own, they follow."""


class Place(Protocol):
    """Where a set of adapters keeps its data: opened again, it holds what was committed."""

    def open(self) -> AbstractAsyncContextManager[Stores]:
        """Open the adapters."""
        ...

    @property
    def clock(self) -> VirtualClock | None:
        """The stores' clock where a test may move it."""
        ...


def new_id() -> bytes:
    """Return 16 bytes that no other request has."""
    return uuid7(time.time_ns(), secrets.randbits(62)).to_bytes(16, "big")


def limit(
    unit: Unit, window: Window, amount: int, *, scope: Scope = "key", model: str = "", subject: bytes = b""
) -> Limit:
    """Return a limit of the test's subject in that scope."""
    subject = subject or {"key": KEY, "user": USER, "team": TEAM}[scope]
    return Limit(scope=scope, subject=subject, unit=unit, window=window, amount=amount, model=model)


def reserve(
    *limits: Limit,
    request: bytes = b"",
    tokens: int = 100,
    cost: int = 0,
    model: str = "m",
    lease_ns: int = LEASE_NS,
) -> Reserve:
    """Return a reservation of the test's key."""
    return Reserve(
        request=request or new_id(),
        key=KEY,
        user=USER,
        team=TEAM,
        model=model,
        limits=limits,
        estimate=Amounts(tokens=tokens, cost=cost),
        lease_ns=lease_ns,
    )


def acceptance(
    wanted: Reserve, *, mode: Mode = "stream", idempotency: str = "", body: bytes = b"{}", priority: int = 0
) -> Acceptance:
    """Return a request to take on."""
    return Acceptance(
        reserve=wanted,
        mode=mode,
        lane=3,
        route="requests",
        body=body,
        body_hash=body.ljust(32, b"\0"),
        idempotency=idempotency,
        priority=priority,
    )


def charge(wanted: Reserve, at: int, *, tokens: int = 30, last_seq: int = -1, log: bytes = b"") -> Charge:
    """Return the end of a request that used ``tokens``."""
    row = LedgerRow(
        request=wanted.request,
        key=wanted.key,
        user=wanted.user,
        team=wanted.team,
        model=wanted.model,
        endpoint="e",
        at=at,
        settled_at=at + 1,
        input_tokens=tokens // 3,
        output_tokens=tokens - tokens // 3,
    )
    return Charge(row=row, log=log, last_seq=last_seq)

"""Accepted requests: found by id, listed by user, claimed by workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from tokenweir.ports.intake import Mode


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an accepted request. It holds no status: that is a fold over its events.

    ``attempt`` is the last one claimed (0: none) and fences the writer of its events. ``log`` is the filed log
    of an ended request, sealed as the body is; until then the events are in the event log. ``last_seq`` is -1
    while it has not ended. ``lease_left_ns`` and ``deadline_left_ns`` are what is left of both by the store's clock
    when this was read: whose own clock is wrong is not misled.
    """

    request: bytes
    key: bytes
    user: bytes
    team: bytes
    model: str
    mode: Mode
    lane: int
    route: str
    at: int
    body: bytes
    body_hash: bytes
    idempotency: str = ""
    priority: int = 0
    deadline_at: int | None = None
    webhook: str = ""
    attempt: int = 0
    lease_until: int = 0
    cancel_at: int | None = None
    ended_at: int | None = None
    last_seq: int = -1
    log: bytes = b""
    first_offset: int | None = None
    lease_left_ns: int = 0
    deadline_left_ns: int | None = None


class RequestStore(Protocol):
    """Reads requests, and the two things about them that change: who works on them, and whether to stop."""

    async def get(self, request: bytes) -> RequestRecord | None:
        """Return a request, or ``None``."""
        ...

    async def history(self, user: bytes, *, before: bytes | None, limit: int) -> Sequence[RequestRecord]:
        """Return a user's requests, newest first, older than ``before``; bodies and logs are left empty."""
        ...

    async def claim(self, request: bytes, *, attempt: int, lease_ns: int) -> RequestRecord | None:
        """Become the writer as ``attempt`` (the last one plus 1), by compare-and-set; ``None``: somebody else is."""
        ...

    async def cancel(self, request: bytes) -> RequestRecord | None:
        """Ask that a request be stopped; the lease holder obeys. Returns the request, or ``None``."""
        ...


class RequestLookup(Protocol):
    """Reads many requests in one call."""

    async def find(self, requests: Sequence[bytes]) -> Mapping[bytes, RequestRecord]:
        """Return those of the requests that are known; their filed logs are left empty."""
        ...


class RequestUpkeep(Protocol):
    """What keeps accepted requests from being forgotten."""

    async def renew(self, requests: Sequence[tuple[bytes, int]], lease_ns: int) -> Sequence[bytes]:
        """Extend leases of (request, attempt); returns those lost or cancelled, whose work must stop."""
        ...

    async def unpublished(self, limit: int) -> Sequence[RequestRecord]:
        """Return accepted requests whose job the queue has not confirmed."""
        ...

    async def abandoned(self, limit: int) -> Sequence[RequestRecord]:
        """Return requests that are neither ended nor leased though their lease ran out."""
        ...


@runtime_checkable
class Resealing(Protocol):
    """Changing the key that bodies and logs are sealed with."""

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[RequestRecord]:
        """Return up to ``limit`` requests whose body, or log where it is not empty, does not begin with ``prefix``."""
        ...

    async def replace(self, batch: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Store (request, body, log) for requests; an empty log leaves the stored one as it is."""
        ...

    async def reseal(self, batch: Sequence[tuple[bytes, bytes, bytes, bytes]]) -> None:
        """Store (request, body before, body, log) as :meth:`replace` does, where the body is that one still."""
        ...

"""Batches of requests: kept until they have ended, worked on by one process at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a batch. Ids are 16 bytes, times Unix ns.

    ``state`` is what its workers and readers know of it, sealed as bodies are. ``digest`` is SHA-256 of what was
    sent; ``idempotency`` is the caller's key, unique for its user; "" is none.
    """

    batch: bytes
    user: bytes
    key: bytes
    at: int
    digest: bytes
    state: bytes
    idempotency: str = ""
    cancel_at: int | None = None
    ended_at: int | None = None


class BatchStore(Protocol):
    """Keeps batches and finds them."""

    async def create(self, record: BatchRecord) -> BatchRecord:
        """Keep a batch durably; returns it, or the one that its idempotency key has already."""
        ...

    async def get(self, batch: bytes) -> BatchRecord | None:
        """Return a batch, or ``None``."""
        ...

    async def listed(self, user: bytes, *, after: bytes | None, limit: int) -> Sequence[BatchRecord]:
        """Return a user's batches, newest first, those older than ``after``."""
        ...

    async def cancel(self, batch: bytes, at: int) -> None:
        """Ask that a batch be stopped; whoever works on it obeys."""
        ...

    async def open(self) -> int:
        """Return how many batches have not ended."""
        ...


class BatchWork(Protocol):
    """Says who works on batches."""

    async def claim(self, worker: bytes, *, lease_ns: int, most: int) -> Sequence[BatchRecord]:
        """Return the batches that a worker holds from here for ``lease_ns``: its own, and up to ``most`` in all.

        Taken are those that have not ended and that nobody holds.
        """
        ...

    async def save(self, record: BatchRecord, worker: bytes) -> bool:
        """Store state and end of a batch; ``False``: another worker holds it, and nothing was stored."""
        ...

    async def release(self, worker: bytes) -> None:
        """Let go of all that a worker holds."""
        ...


class BatchResealing(Protocol):
    """Changing the key that states are sealed with."""

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """Return up to ``limit`` states, as (batch, state), that do not begin with ``prefix``."""
        ...

    async def replace(self, batch: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Store states, as (batch, state before, state), where the state is that one still."""
        ...


class Batches(BatchStore, BatchWork, BatchResealing, Protocol):
    """All of it."""

"""A queue of jobs: delivered at least once, acknowledged, tried again later, and kept when they cannot be done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Work on one accepted request. ``attempt`` is the one to claim; ``priority`` higher is sooner (0–9).

    ``log`` is a hint for whoever settles: the whole log that this attempt wrote, as it is to be filed. A queue may
    leave it out, and so may who publishes: it stands in the event log as well.
    """

    request: bytes
    lane: int
    attempt: int = 1
    priority: int = 0
    errors: tuple[str, ...] = ()
    log: bytes = b""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A job in this worker's hands; ``tag`` is the queue's own handle."""

    job: Job
    tag: str | int


class QueueDepth(msgspec.Struct, frozen=True, kw_only=True):
    """How much waits, how much is out, how long the oldest has waited, and how many are dead.

    For charts: with a broker a count may lag behind what was just done.
    """

    ready: int
    unacknowledged: int
    oldest_ns: int
    dead: int


class JobQueue(Protocol):
    """Jobs for workers."""

    async def publish(self, batch: Sequence[Job], *, delay_ns: int = 0) -> None:
        """Queue jobs durably, to be delivered after ``delay_ns``; returns once the queue has confirmed all."""
        ...

    def deliveries(self, *, prefetch: int) -> AsyncIterator[Delivery]:
        """Yield jobs, at most ``prefetch`` unacknowledged; what a lost worker held is delivered again."""
        ...

    async def acknowledge(self, batch: Sequence[Delivery]) -> None:
        """Done with these: they are never delivered again."""
        ...

    async def bury(self, delivery: Delivery, error: str) -> None:
        """Give a job up: it goes to the dead letters with its errors."""
        ...


class DeadLetters(Protocol):
    """Jobs that were given up."""

    async def depth(self) -> QueueDepth:
        """Return how the queue stands."""
        ...

    async def dead(self, *, limit: int) -> Sequence[Job]:
        """Return dead jobs, oldest first."""
        ...

    async def replay(self, request: bytes) -> bool:
        """Queue a dead job again with a fresh attempt; ``False``: there is none."""
        ...

    async def drop(self, request: bytes) -> bool:
        """Forget a dead job; ``False``: there is none."""
        ...

"""The log of events: appended by a request's one writer, read from any seq, followed as it grows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol, runtime_checkable

import msgspec

from tokenweir.core.events import Event

LANES: Final = 64
"""A request's lane is the hash of its user over this many, so that a user's requests lie together."""


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive events of one request. ``attempt`` is the writer's: an older attempt's events are fenced off."""

    request: bytes
    lane: int
    attempt: int
    events: tuple[Event, ...]


@runtime_checkable
class BoundedLog(Protocol):
    """An event log that does not take appends of any length."""

    @property
    def most_bytes(self) -> int:
        """The most bytes that the events of one append may have as MessagePack."""
        ...


class EventLog(Protocol):
    """Events of accepted requests. Packing events into records never merges them."""

    async def append(self, batch: Sequence[Append]) -> None:
        """Write all durably and wake followers. A seq that is there already is ignored.

        Once it returns, nothing counts that an earlier attempt writes from then on; one without events does that alone.
        """
        ...

    async def read(self, request: bytes, lane: int, *, after: int = -1) -> Sequence[Event]:
        """Return the events with a seq above ``after`` that are there now, in order, without gaps."""
        ...

    def follow(self, request: bytes, lane: int, *, after: int = -1) -> AsyncIterator[Sequence[Event]]:
        """Yield events above ``after`` as they come, those there first; ends after an ending event.

        A slow reader is paused and loses nothing.
        """
        ...

    async def forget(self, requests: Sequence[tuple[bytes, int]]) -> None:
        """Drop the events of (request, lane): their log is filed with the request."""
        ...

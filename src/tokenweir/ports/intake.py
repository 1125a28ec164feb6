"""Accepting requests so that none is lost: request, reservation and job become durable together, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec

from tokenweir.ports.quota import Denied, Headroom, Reserve

Mode = Literal["direct", "single", "stream"]
"""Relayed while logged; queued with the result at the end; queued with tokens as they come."""


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """A request to take on. Its id is ``reserve.request``.

    ``body`` is the request as JSON, sealed where a key is set; ``body_hash`` is SHA-256 of the plain one.
    ``idempotency`` is the caller's key, unique for its user; "" is none. ``route`` is the door it came through
    (``requests``, ``responses``, ``chat``…), which shapes its result. A job is queued unless the mode is direct.
    """

    reserve: Reserve
    mode: Mode
    lane: int
    route: str
    body: bytes
    body_hash: bytes
    idempotency: str = ""
    priority: int = 0
    deadline_ns: int | None = None
    webhook: str = ""


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag="taken"):
    """It is durable: answer 202, and it will end. ``at`` is the store's clock."""

    request: bytes
    at: int
    headroom: tuple[Headroom, ...] = ()


class Repeated(msgspec.Struct, frozen=True, kw_only=True, tag="repeated"):
    """The same idempotency key and body were taken on before, as ``request``; nothing was reserved again."""

    request: bytes


class Conflict(msgspec.Struct, frozen=True, kw_only=True, tag="conflict"):
    """The idempotency key was used with another body; 409."""

    request: bytes


Outcome: TypeAlias = Taken | Repeated | Conflict | Denied


class Intake(Protocol):
    """The one door through which queued, background and idempotent requests enter."""

    async def accept(self, batch: Sequence[Acceptance]) -> Sequence[Outcome]:
        """Take on each that fits, in one group commit; the outcomes are in order.

        Raises UnavailableError when nothing could be made durable; then nothing was accepted.
        """
        ...

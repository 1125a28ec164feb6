"""What the scheduler is asked, and what it answers: tickets, outcomes and changes, all plain values."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from tokenweir.core.errors import WeirError
from tokenweir.runtime.bridge.messages import Tune
from tokenweir.runtime.options import Priority


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request that wants to be decoded.

    ``id`` is the caller's, never used twice. ``deadline_ns`` is an instant of the monotonic clock. ``sequences`` are
    decoded for it at once (``n``); ``kv_bytes`` is the cache of all of them at their longest, as
    :func:`tokenweir.runtime.scheduling.budget.kv_bytes` computes it. ``exclusive`` puts it into the lane of one.
    """

    id: int
    model: str
    priority: Priority = "normal"
    deadline_ns: int | None = None
    prompt_tokens: int = 0
    max_tokens: int = 0
    sequences: int = 1
    kv_bytes: int = 0
    exclusive: bool = False


class Admitted(msgspec.Struct, frozen=True, kw_only=True, tag="admitted"):
    """Start it now; its bytes and its place are taken until ``finish`` or ``cancel``."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag="waiting"):
    """It stands in line behind ``position`` others, 0 for the next; a later call admits, sheds or expires it."""

    position: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """It was not taken on; ``error`` says why, and with ``retry_after_ns`` when to come back where that helps."""

    error: WeirError


Outcome: TypeAlias = Admitted | Waiting | Refused
"""What becomes of a ticket at once."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a call brought about: every ticket in it left the line, and stands in exactly one of the lists.

    ``tune`` is to be sent to the engine. ``shed`` and ``expired`` tickets are to be failed, with
    ``Scheduler.shed_error`` and ``Scheduler.deadline_error``.
    """

    tune: tuple[Tune, ...] = ()
    admitted: tuple[Ticket, ...] = ()
    shed: tuple[Ticket, ...] = ()
    expired: tuple[Ticket, ...] = ()

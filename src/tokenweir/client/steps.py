"""What a client does, step by step: decided here once, done by whoever moves bytes and waits.

A plan is a generator. It yields steps, and is sent what came of each:

================  =======================================================================
``Ask``           a whole ``Answer``; of a streamed one, when it is 200, the head alone; or ``Lost``
``Hear``          the next piece of a streamed answer, b"" at its end; or ``Lost``
``Rest``, ``Tell``  nothing
================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from tokenweir.client.exchange import Question
from tokenweir.client.options import Origin
from tokenweir.core.errors import ProtocolError
from tokenweir.core.events import Event

T = TypeVar("T")


class Ask(NamedTuple):
    """Send a request to a gateway."""

    origin: Origin
    question: Question
    limit_ns: int
    streamed: bool = False


class Hear(NamedTuple):
    """Read on in a streamed answer."""

    limit_ns: int


class Rest(NamedTuple):
    """Wait."""

    rest_ns: int


class Tell(NamedTuple):
    """Give the caller an event."""

    event: Event


class Answer(NamedTuple):
    """What a gateway said; of a stream the head alone. Names of headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Lost(NamedTuple):
    """There was no connection, or it broke. ``final``: another attempt there cannot succeed."""

    reason: str
    final: bool = False


Step: TypeAlias = Ask | Hear | Rest | Tell
Came: TypeAlias = Answer | bytes | Lost | None
Plan: TypeAlias = Generator[Step, Came, T]

_read_event = msgspec.json.Decoder(Event).decode


class Kind(msgspec.Struct, frozen=True):
    """An event of a kind that this version does not know."""

    type: str
    seq: int


_read_kind = msgspec.json.Decoder(Kind).decode
_KNOWN: Final = frozenset(
    {"accepted", "queued", "started", "token", "usage", "degraded", "completed", "failed", "cancelled"}
)


def read_event(told: bytes | msgspec.Raw) -> Event | Kind:
    """Read an event; of a kind that this version does not know, its seq. Raises ProtocolError."""
    try:
        return _read_event(told)
    except msgspec.MsgspecError as error:
        try:
            kind = _read_kind(told)
        except msgspec.MsgspecError:
            kind = None
        if kind is None or kind.type in _KNOWN:
            raise ProtocolError(f"an event cannot be read: {error}", mend="is it a gateway's URL?") from error
        return kind

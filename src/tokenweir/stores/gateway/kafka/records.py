"""How events lie in records, and how a request's events are read out of them.

``packing = "lane"``: a record holds what a worker had for a lane, of any requests, one after another and never merged.
``packing = "none"``: a record holds one event as JSON, and its key is the request's id in hexadecimal.

Reading is a fold in the order of the lane, so that all readers see the same: the first event of a seq counts, and once
an attempt has been seen, nothing of an earlier one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from tokenweir.core.events import Cancelled, Completed, Event, Failed
from tokenweir.ports.eventlog import Append

Packing = Literal["lane", "none"]

_ENDS: Final = (Completed, Failed, Cancelled)

FORGOTTEN: Final = -1
"""In the place of an attempt: the request's log is filed elsewhere, and its events here are over."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive events of one request, as one attempt wrote them."""

    request: bytes
    attempt: int
    events: tuple[Event, ...] = ()


class _Single(msgspec.Struct, frozen=True):
    attempt: int
    event: Event | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Piece]).decode
_encode_single = msgspec.json.Encoder().encode
_decode_single = msgspec.json.Decoder(_Single).decode

Record = tuple[bytes | None, bytes]
"""A key and a value."""


def packed(pieces: Sequence[Piece], packing: Packing) -> list[Record]:
    """Return the records that hold the pieces."""
    if packing == "lane":
        return [(None, _encode(pieces))]
    return [
        (piece.request.hex().encode(), _encode_single(_Single(piece.attempt, event)))
        for piece in pieces
        for event in (piece.events or (None,))
    ]


def unpacked(key: bytes | None, value: bytes) -> Sequence[Piece]:
    """Return the pieces of a record, whichever way it was packed."""
    if not key:
        return _decode(value)
    single = _decode_single(value)
    events = () if single.event is None else (single.event,)
    return (Piece(bytes.fromhex(key.decode()), single.attempt, events),)


def piece_of(append: Append) -> Piece:
    """Return what is written of an append."""
    return Piece(append.request, append.attempt, append.events)


class Fold:
    """The events of one request, from the seq ``first`` on, as far as they were read.

    ``known``: nothing of what came before was missed, so that these are the events that count.
    """

    __slots__ = ("attempt", "events", "first", "forgotten", "known")

    def __init__(self, first: int = 0, attempt: int = 0) -> None:
        self.first = first
        self.attempt = attempt
        self.known = True
        self.events: list[Event] = []
        self.forgotten = False

    @property
    def empty(self) -> bool:
        """Whether nothing of the request was seen."""
        return not self.events and not self.forgotten and not self.attempt

    @property
    def next_seq(self) -> int:
        """The seq that comes next."""
        return self.first + len(self.events)

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self.forgotten or (bool(self.events) and isinstance(self.events[-1], _ENDS))

    def trim(self, keep: int) -> int:
        """Drop all but the last ``keep`` events, and return how many those were."""
        more = max(0, len(self.events) - keep)
        if more:
            self.first += more
            self.events = self.events[more:]
        return more

    def take(self, piece: Piece) -> int:
        """Take what a piece adds, and return by how many events the fold grew."""
        if piece.attempt == FORGOTTEN:
            fewer = -len(self.events)
            self.events = []
            self.forgotten = True
            return fewer
        if self.forgotten or piece.attempt < self.attempt:
            return 0
        self.attempt = piece.attempt
        before = len(self.events)
        if piece.events and piece.events[0].seq == self.next_seq and not self.ended:
            # A piece is consecutive, and ends with an end, if it has one.
            self.events.extend(piece.events)
            return len(self.events) - before
        for event in piece.events:
            if event.seq == self.next_seq and not self.ended:
                self.events.append(event)
            elif event.seq > self.next_seq:
                # The events before are not at hand: this reader came later.
                self.first = event.seq
                self.events = [event]
                self.known = False
        return len(self.events) - before

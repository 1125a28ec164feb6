"""Decoding for timing only: what a measuring client needs of an answer, without an object per event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.ports.backend import StreamDecoder

Ending: TypeAlias = Completed | Failed | Cancelled
"""The event that ends an answer."""


class TimingRows(msgspec.Struct, kw_only=True, gc=False):
    """An answer as parallel columns, one entry per ``Token`` event.

    ``ends`` are offsets in the body, just past the bytes that completed the token event; ``counts`` the
    output tokens in it; ``sent_ns`` the sender's own clock. A column is ``None`` when no entry is known.
    ``started`` is the offset past the first event, ``None`` if there was none. ``text`` is the answer's text
    as :func:`tokenweir.core.events.text` gives it; ``usage`` the last one told.
    """

    ends: list[int]
    ending: Ending
    counts: list[int | None] | None = None
    sent_ns: list[int | None] | None = None
    started: int | None = None
    text: str = ""
    usage: Usage | None = None


@runtime_checkable
class TimingDecoder(StreamDecoder, Protocol):
    """A stream decoder that also offers the shortcut."""

    def timing(self, body: bytes) -> TimingRows:
        """Return the columns of a whole body; the decoder must be fresh and is spent afterwards.

        Equal to :func:`rows` of what ``feed(body)`` and ``end()`` return. Never raises for bad input.
        """
        ...


def rows(events: Sequence[tuple[int, Event]]) -> TimingRows:
    """Return the columns of decoded events: the readable twin of :meth:`TimingDecoder.timing`.

    Raises ValueError when no ending event is among them.
    """
    ends: list[int] = []
    counts: list[int | None] = []
    sent: list[int | None] = []
    texts: list[str] = []
    usage: Usage | None = None
    started: int | None = None
    for end, event in events:
        match event:
            case Token():
                ends.append(end)
                counts.append(event.count)
                sent.append(event.sent_ns)
                if event.index == 0:
                    texts.append(event.text)
            case Usage():
                usage = event
            case Started():
                started = end
            case Completed() | Failed() | Cancelled():
                return TimingRows(
                    ends=ends,
                    ending=event,
                    counts=known(counts),
                    sent_ns=known(sent),
                    started=started,
                    text="".join(texts),
                    usage=usage,
                )
            case _:
                pass
    raise ValueError("the events lack an ending; add what end() returns")


def known(column: list[int | None]) -> list[int | None] | None:
    """Return ``column``, or ``None`` when it holds nothing but ``None``."""
    return column if any(value is not None for value in column) else None

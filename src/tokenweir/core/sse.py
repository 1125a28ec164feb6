"""Server-sent events: an incremental parser that accepts any split of the bytes, and the formatter.

Source: the WHATWG HTML standard, "Server-sent events" (event stream interpretation).
"""

from __future__ import annotations

from typing import Final, NamedTuple

_LF: Final = 0x0A


class SseEvent(NamedTuple):
    """One dispatched event. ``end`` is the offset, in the bytes fed so far, just past its last byte."""

    end: int
    data: bytes
    event: bytes = b""
    id: bytes | None = None


class SseParser:
    """Turn fed bytes into events.

    Accepts LF, CR and CRLF line ends, ``data:`` with and without a space, comments, several ``data`` lines
    per event and any split of the input. An event still open at the end of input is given by :meth:`end`,
    because model servers that die or forget the last blank line still owe their final data.
    """

    __slots__ = ("_base", "_buffer", "_data", "_event", "_first", "_id", "_skip_lf")

    def __init__(self) -> None:
        self._buffer = b""
        self._base = 0
        self._data: list[bytes] = []
        self._event = b""
        self._id: bytes | None = None
        self._skip_lf = False
        self._first = True

    @property
    def idle(self) -> bool:
        """Whether the parser stands between two events, so that :meth:`skip` may be called."""
        return not (self._buffer or self._data or self._event or self._skip_lf)

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes of whole events that the caller has read itself; offsets include them."""
        self._base += count
        self._first = self._first and not count

    def feed(self, data: bytes) -> list[SseEvent]:
        """Return the events that ``data`` completes, in order."""
        buffer = self._buffer + data if self._buffer else data
        events: list[SseEvent] = []
        position = 0
        if self._skip_lf and buffer:
            # The CR that ended the previous feed was the first half of a CRLF.
            self._skip_lf = False
            if buffer[0] == _LF:
                position = 1
        has_cr = b"\r" in buffer
        while True:
            end = buffer.find(b"\n", position)
            following = end + 1
            if has_cr:
                cr = buffer.find(b"\r", position) if end < 0 else buffer.find(b"\r", position, end)
                if cr >= 0:
                    end = cr
                    following = cr + 1
                    if following == len(buffer):
                        self._skip_lf = True
                    elif buffer[following] == _LF:
                        following += 1
            if end < 0:
                break
            if end == position:
                # Past the CR only, even of a CRLF: the event is complete there, however the input is split.
                self._dispatch(events, self._base + end + 1)
            else:
                self._line(buffer[position:end])
            position = following
        self._base += position
        self._buffer = buffer[position:]
        return events

    def end(self) -> list[SseEvent]:
        """Return the event that the end of input leaves open, if any."""
        if self._buffer:
            self._line(self._buffer)
            self._base += len(self._buffer)
            self._buffer = b""
        events: list[SseEvent] = []
        self._dispatch(events, self._base)
        return events

    def _line(self, line: bytes) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line[:5] == b"data:":
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self._id = value

    def _dispatch(self, events: list[SseEvent], end: int) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(SseEvent(end, data, self._event, self._id))
            self._data = []
        self._event = b""


def format_event(data: bytes, *, event: bytes = b"", event_id: bytes | None = None) -> bytes:
    """Return the wire form of one event; line ends inside ``data`` become several ``data`` lines."""
    lines: list[bytes] = []
    if event:
        lines.append(b"event: " + event)
    if event_id is not None:
        lines.append(b"id: " + event_id)
    normal = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines.extend(b"data: " + line for line in normal.split(b"\n"))
    return b"\n".join(lines) + b"\n\n"

"""A streamed body as server-sent events: many at once where it is regular, one by one where it is not.

Engines write almost every stream as ``data: {…}`` and a blank line, over and over. Such a run of bytes is cut
by one split and decoded as JSON lines in one call; :class:`~tokenweir.core.sse.SseParser` takes the rest.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final, Generic, TypeVar

import msgspec

from tokenweir.backends.failures import broken, complaint, failed, quote
from tokenweir.core.events import Cancelled, Completed, Event, Failed
from tokenweir.core.sse import SseEvent, SseParser

_OPEN: Final = b"data: {"
_CLOSE: Final = b"}\n\n"
_BETWEEN: Final = b"}\n\ndata: {"
_DONE: Final = b"data: [DONE]\n\n"
_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
_FOREIGN: Final = b"{[<"
_LONGEST_FOREIGN: Final = 1 << 20

Chunk = TypeVar("Chunk")

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON it was asked for."""


class Batch:
    """Consecutive events of a body. ``ends`` are their offsets; ``done`` that ``[DONE]`` follows them."""

    __slots__ = ("_braces", "_parts", "done", "ends")

    def __init__(self, parts: list[bytes], ends: list[int], *, braces: bool, done: bool) -> None:
        self._parts = parts
        self._braces = braces
        self.ends = ends
        self.done = done

    def lines(self) -> bytes:
        """Return the payloads as JSON lines."""
        return b"{" + b"}\n{".join(self._parts) + b"}" if self._braces else b"\n".join(self._parts)

    def payload(self, index: int) -> bytes:
        """Return the JSON text of one event."""
        part = self._parts[index]
        return b"{" + part + b"}" if self._braces else part


def split(data: bytes, base: int = 0) -> Batch | None:
    r"""Return the events of ``data`` if it is ``data: {…}\n\n`` repeated and then at most one ``[DONE]``.

    Each payload starts with ``{`` and ends with ``}``. Because ``}``, white space, ``{`` occurs in no JSON
    value, decoding :meth:`Batch.lines` fails, or gives one value per event, or a different number of them.
    """
    done = data.endswith(_DONE)
    body = data[: -len(_DONE)] if done else data
    if not (body.startswith(_OPEN) and body.endswith(_CLOSE)):
        return None
    core = body[len(_OPEN) : -len(_CLOSE)]
    parts = core.split(_BETWEEN)
    if core.count(b"\n") != 2 * (len(parts) - 1) or b"\r" in core:
        return None
    frame = len(_BETWEEN)
    ends = list(accumulate([len(part) + frame for part in parts]))
    if base:
        ends = [base + end for end in ends]
    return Batch(parts, ends, braces=True, done=done)


class EventDecoder(Generic[Chunk]):
    """What the stream decoders of all engines share: framing, ``[DONE]``, errors and the one ending.

    A subclass decodes payloads (:meth:`_decode_line`, :meth:`_decode_lines`) and folds them into events
    (:meth:`_fold`), and says how the answer ended (:meth:`_ending`). ``_seq`` is the next event's number.
    """

    __slots__ = ("_base", "_ended", "_foreign", "_head", "_parser", "_seq", "_sniffed")

    def __init__(self) -> None:
        self._base = 0
        self._seq = 0
        self._ended = False
        self._sniffed = False
        self._foreign: bytearray | None = None
        self._head = b""
        self._parser: SseParser | None = None

    def feed(self, data: bytes) -> list[tuple[int, Event]]:
        """Return the events that ``data`` completes, as a ``StreamDecoder`` does."""
        if self._ended or not data:
            return []
        out: list[tuple[int, Event]] = []
        if self._regular(data, out):
            return out
        for piece in self._pieces(data):
            if self._ended:
                break
            if not self._regular(piece, out):
                self._irregular(piece, out)
        return out

    def end(self) -> list[tuple[int, Event]]:
        """Return the events that the end of the body implies, the ending among them."""
        out: list[tuple[int, Event]] = []
        if self._ended:
            return out
        if self._foreign is not None:
            self._close(out, self._base, self._stranger(bytes(self._foreign)))
        elif self._parser is not None:
            self._take(self._parser.end(), out)
        if not self._ended:
            self._close(out, self._base, self._ending(self._seq, cut=True))
        return out

    def _regular(self, data: bytes, out: list[tuple[int, Event]]) -> bool:
        """Fold ``data`` into ``out`` if it has the regular form; if not, do nothing and return False."""
        parser = self._parser
        if self._foreign is not None or not (parser is None or parser.idle):
            return False
        batch = split(data, self._base)
        if batch is None:
            return False
        try:
            chunks = self._decode_lines(batch.lines())
        except UNDECODABLE:
            return False
        if len(chunks) != len(batch.ends):
            return False
        self._sniffed = True
        self._base += len(data)
        if parser is not None:
            parser.skip(len(data))
        self._fold(batch, chunks, out)
        if batch.done and not self._ended:
            self._finish(out, self._base)
        return True

    def _pieces(self, data: bytes) -> list[bytes]:
        """Return ``data`` cut so that a regular run in its middle is seen as one.

        Before it may stand comments or the rest of a divided event; after it, the start of one.
        """
        idle = self._parser is None or self._parser.idle
        start = 0 if idle and data.startswith(_OPEN) else data.find(b"\n\n" + _OPEN) + 2
        stop = data.rfind(b"\n\n") + 2
        if start == 1 or stop <= start:
            return [data]
        return [piece for piece in (data[:start], data[start:stop], data[stop:]) if piece]

    def _irregular(self, data: bytes, out: list[tuple[int, Event]]) -> None:
        self._base += len(data)
        if not self._sniffed:
            self._sniff(data)
        if self._foreign is not None:
            self._foreign += data[: _LONGEST_FOREIGN - len(self._foreign)]
            return
        if self._parser is None:
            self._parser = SseParser()
            self._parser.skip(self._base - len(data))
        if len(self._head) < 200 and not self._seq:  # noqa: PLR2004
            self._head += data[: 200 - len(self._head)]
        self._take(self._parser.feed(data), out)

    def _take(self, frames: list[SseEvent], out: list[tuple[int, Event]]) -> None:
        for frame in frames:
            if self._ended:
                return
            end = frame.end
            payload = frame.data.strip()
            if payload == b"[DONE]":
                self._finish(out, end)
            elif frame.event == b"error":
                said = complaint(payload)
                words = quote(payload.decode(errors="replace"))
                self._close(out, end, failed(self._seq, said) if said else broken(self._seq, words))
            elif payload and frame.event != b"ping":
                self._take_one(payload, end, out)

    def _take_one(self, payload: bytes, end: int, out: list[tuple[int, Event]]) -> None:
        try:
            chunk = self._decode_line(payload)
        except UNDECODABLE as error:
            said = complaint(payload)
            words = f"an event of the stream cannot be read ({error}): {_start(payload)}"
            self._close(out, end, failed(self._seq, said) if said else broken(self._seq, words))
            return
        self._fold(Batch([payload], [end], braces=False, done=False), [chunk], out)

    def _sniff(self, data: bytes) -> None:
        """Tell by the first significant byte whether this is a stream at all."""
        text = data.lstrip(_BLANK)
        if text:
            self._sniffed = True
            if text[0] in _FOREIGN:
                self._foreign = bytearray()

    def _stranger(self, body: bytes) -> Failed:
        said = complaint(body)
        if said is not None:
            return failed(self._seq, said)
        form = "HTML" if body.lstrip(_BLANK).startswith(b"<") else "one JSON document"
        return broken(
            self._seq,
            f"the server answered a request for a stream with {form} instead of server-sent events: "
            f"{_start(body)}; check the URL, or ask without a stream",
        )

    def _finish(self, out: list[tuple[int, Event]], end: int) -> None:
        self._close(out, end, self._ending(self._seq, cut=False))

    def _close(self, out: list[tuple[int, Event]], end: int, ending: Completed | Failed | Cancelled) -> None:
        """Add the ending. After it nothing more comes."""
        out.append((end, ending))
        self._seq = ending.seq + 1
        self._ended = True

    def _nothing(self, seq: int, *, cut: bool) -> Failed:
        if seq or not cut:
            return broken(seq, "the stream ended without an answer")
        if self._head.lstrip(_BLANK):
            return broken(seq, f"the stream holds no answer: {_start(self._head)}")
        return broken(seq, "the stream ended before it began")

    def _decode_line(self, payload: bytes) -> Chunk:
        raise NotImplementedError

    def _decode_lines(self, lines: bytes) -> list[Chunk]:
        raise NotImplementedError

    def _fold(self, batch: Batch, chunks: list[Chunk], out: list[tuple[int, Event]]) -> None:
        raise NotImplementedError

    def _ending(self, seq: int, *, cut: bool) -> Completed | Failed | Cancelled:
        raise NotImplementedError


def _start(body: bytes) -> str:
    return repr(quote(body[:120].decode(errors="replace")))

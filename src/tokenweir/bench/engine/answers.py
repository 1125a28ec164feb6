"""Telling when an answer is whole: from its head and its framing's last bytes, without parsing what lies between."""

from __future__ import annotations

from typing import Final

from tokenweir.bench.engine import framing
from tokenweir.bench.engine.connections import Mode

MORE: Final = 0
WHOLE: Final = 1
BAD: Final = 2

_HEADS: Final = 4096
_FIRST_FINAL: Final = 200
_TAIL_BYTES: Final = 4096


class Answers:
    """The answers being read, in lists indexed by descriptor.

    ``left`` counts the bytes that a counted body lacks (negative: it brought too many). ``keep`` says whether the
    connection may be used again; one that got half a request (``spoilt``) may not. ``mode`` is that of the
    connections, advanced as heads come whole. ``usual`` has, by the size of a read that held a whole answer, the
    head it began with: an answer that is not streamed is mostly like one before.
    """

    __slots__ = ("_known", "_mode", "exact", "heads", "keep", "left", "spoilt", "tails", "usual")

    def __init__(self, mode: list[int]) -> None:
        self._mode = mode
        self._known: dict[bytes, framing.Head] = {}
        self.heads: dict[int, bytes] = {}
        self.usual: dict[int, bytes] = {}
        self.exact: dict[int, framing.Dechunker] = {}
        self.tails: dict[int, bytes] = {}
        self.spoilt: set[int] = set()
        self.left: list[int] = [0] * len(mode)
        self.keep: list[bool] = [False] * len(mode)

    def grow(self) -> None:
        """Follow the connections' list when it has grown."""
        missing = len(self._mode) - len(self.left)
        self.left.extend([0] * missing)
        self.keep.extend([False] * missing)

    def untouched(self, fd: int) -> bool:
        """Whether no byte of the answer has come."""
        return self._mode[fd] in {Mode.HEAD, Mode.SENDING} and fd not in self.heads

    def renew(self, fd: int) -> None:
        """Make ready for the next answer on a connection whose last one was whole."""
        self.exact.pop(fd, None)
        self.tails.pop(fd, None)

    def forget(self, fd: int) -> None:
        """Drop what is kept of an answer that is over."""
        self.left[fd] = 0
        self.spoilt.discard(fd)
        for kept in (self.tails, self.heads, self.exact):
            if kept:
                kept.pop(fd, None)

    def head(self, fd: int, read: bytes) -> int:
        """Take in a read while a head is awaited; return ``MORE``, ``WHOLE`` or ``BAD``."""
        if self.heads:
            read = self.heads.pop(fd, b"") + read
        blank = read.find(b"\r\n\r\n")
        if blank < 0:
            self.heads[fd] = read
            return BAD if len(read) > framing.MAX_HEAD_BYTES else MORE
        text = read[:blank]
        head = self._known.get(text) or self._parse(text)
        if head is None:
            return BAD
        body = len(read) - blank - 4
        if head.length == body and head.status >= _FIRST_FINAL:
            # The usual answer that is not streamed: all of it in one read.
            self.keep[fd] = head.keep_alive and fd not in self.spoilt
            self.left[fd] = 0
            if self.keep[fd] and len(self.usual) < _HEADS:
                self.usual[len(read)] = read[: blank + 4]
            return WHOLE
        if head.status < _FIRST_FINAL:
            # An interim answer: what follows its blank line is another head.
            return self.head(fd, read[blank + 4 :]) if body else MORE
        self.keep[fd] = head.keep_alive and fd not in self.spoilt
        if head.length >= 0:
            self.left[fd] = head.length - body
            self._mode[fd] = Mode.LENGTH
            return WHOLE if body >= head.length else MORE
        if head.length == framing.UNTIL_CLOSE:
            self._mode[fd] = Mode.UNTIL_CLOSE
            return MORE
        self._mode[fd] = Mode.CHUNKED
        if head.trailers:
            self.exact[fd] = framing.Dechunker()
            # An entry among the tails makes the loop show every read of this answer.
            self.tails[fd] = b""
        return self.tail(fd, b"\r\n" + read[blank + 4 :], skip=2) if body else MORE

    def tail(self, fd: int, read: bytes, *, skip: int = 0) -> int:
        """Judge a chunked read that is short, or ends as a last chunk may; ``skip`` bytes of it are not the body's."""
        if self.exact and fd in self.exact:
            exact = self.exact[fd]
            exact.feed(read[skip:])
            return WHOLE if exact.whole else BAD if exact.bad else MORE
        whole, kept = framing.last_chunk_tail(self.tails.pop(fd, b""), read[-_TAIL_BYTES:])
        if kept:
            self.tails[fd] = kept
        return WHOLE if whole else MORE

    def _parse(self, text: bytes) -> framing.Head | None:
        head = framing.parse_head(text)
        if head is not None:
            if len(self._known) >= _HEADS:
                self._known.clear()
            self._known[text] = head
        return head

"""HTTP/1.1 message framing: enough for the capture to know when an answer is whole, and all for the finishing pass.

Source: RFC 9112, sections 6 and 7.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
LAST_CHUNK_BEGUN: Final = (b"\r\n\r\n", b"\r\n0\r\n\r", b"\r\n0\r\n", b"\r\n0\r", b"\r\n0")
"""What a read can end with when the last chunk has begun to arrive; with the first it may be all there."""
LAST_CHUNK_ENDS: Final = frozenset(
    (bytes((before,)) + begun)[-4:] for begun in LAST_CHUNK_BEGUN for before in range(256)
)
"""The last 4 bytes of every read that ends so."""
_LAST_CHUNK_FORMS: Final = re.compile(
    rb"(?:\A|\r\n)0+[ \t]*(?:;[^\r\n]*)?\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n)*\r\n\Z"
)
"""A last chunk in full: more zeros, an extension, trailer fields."""
_WHOLE_TAILS: Final = (b"0\r\n\r\n", b"\n0\r\n\r\n", LAST_CHUNK)
_PART_TAILS: Final = (b"0", b"0\r", b"0\r\n", b"0\r\n\r", b"\n0", b"\n0\r", b"\n0\r\n", b"\n0\r\n\r")

_STATUS: Final = re.compile(rb"[1-9][0-9]{2}")
_HEX: Final = b"0123456789abcdefABCDEF"

CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2
MAX_HEAD_BYTES: Final = 64 << 10
_CRLF: Final = 2
_SIZE_LINE: Final = 256
"""A chunk's size line is a few digits and perhaps an extension; without an end after this much it is none."""


class Head(NamedTuple):
    """What an answer's head says.

    ``length`` is the body's bytes, ``CHUNKED`` or ``UNTIL_CLOSE``; ``trailers`` says that fields will follow it;
    ``coding`` names a compression.
    """

    status: int
    length: int
    keep_alive: bool
    trailers: bool
    coding: str = ""


def parse_head(head: bytes) -> Head | None:
    """Read a head that ends before its blank line; ``None`` when it is not one of HTTP/1."""
    status_line, _, fields = head.partition(b"\r\n")
    version, _, rest = status_line.partition(b" ")
    digits = rest.partition(b" ")[0]
    if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not _STATUS.fullmatch(digits):
        return None
    status = int(digits)
    length = UNTIL_CLOSE
    keep_alive = version == b"HTTP/1.1"
    trailers = False
    coding = ""
    for line in fields.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.strip().lower()
        if name == b"content-length" and length != CHUNKED:
            if not value.strip().isdigit():
                return None
            length = int(value)
        elif name == b"transfer-encoding" and b"chunked" in value.lower():
            length = CHUNKED
        elif name == b"connection":
            keep_alive = b"close" not in value.lower() and (keep_alive or b"keep-alive" in value.lower())
        elif name == b"trailer":
            trailers = True
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            coding = value.strip().decode("latin-1")
    if status in {204, 304}:
        length = 0
    return Head(status, length, keep_alive and length != UNTIL_CLOSE, trailers, coding)


def parse_fields(head: bytes) -> dict[str, str]:
    """Return a head's fields with lower-case names; a repeated field keeps its last value."""
    fields: dict[str, str] = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            fields[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
    return fields


def last_chunk_tail(before: bytes, read: bytes) -> tuple[bool, bytes]:
    """Judge a read that is short, or that ends as a last chunk begins.

    ``before`` is what an earlier call kept. Returns whether the last chunk is whole, and what to keep for the
    next read. Assumes that the bytes before a read are the end of a chunk, which holds for every sender that
    does not cut its own chunks inside their final bytes; the finishing pass checks the framing exactly.
    """
    joined = before + read
    if joined.endswith(LAST_CHUNK) or joined in _WHOLE_TAILS:
        return True, b""
    if joined.endswith(b"\r\n\r\n") and _LAST_CHUNK_FORMS.search(joined):
        return True, b""
    for begun in LAST_CHUNK_BEGUN[1:]:
        if joined.endswith(begun):
            return False, begun
    return False, joined if joined in _PART_TAILS else b""


class Dechunker:
    """Takes chunk framing off a body fed in any split. ``bad`` is set, for good, when the framing is broken."""

    __slots__ = ("_left", "_pending", "bad", "whole")

    def __init__(self) -> None:
        self._left: int = 0
        self._pending: bytes = b""
        self.whole = False
        self.bad = False

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in ``data``.

        The usual read is exactly one chunk, and takes the short way.
        """
        if not self._left and not self._pending and not self.whole and not self.bad:
            line = data.find(b"\r\n", 0, 18)
            if line > 0:
                size = _size(data[:line])
                if size > 0 and len(data) == line + size + 4 and data.endswith(b"\r\n"):
                    return data[line + 2 : -2]
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        data = self._pending + data
        self._pending = b""
        body: list[bytes] = []
        position = 0
        while position < len(data) and not self.whole and not self.bad:
            if self._left > _CRLF:
                piece = data[position : position + self._left - 2]
                body.append(piece)
                position += len(piece)
                self._left -= len(piece)
                continue
            if self._left:
                # A chunk's closing CRLF counts as its last two bytes.
                self._left, position = self._close(data, position)
                continue
            line = data.find(b"\r\n", position)
            if line < 0:
                self._pending = data[position:]
                self.bad = len(self._pending) > _SIZE_LINE
                break
            position = self._open(data[position:line], line + 2, data)
        return b"".join(body)

    def _close(self, data: bytes, position: int) -> tuple[int, int]:
        expected = b"\r\n"[2 - self._left :]
        got = data[position : position + self._left]
        if not expected.startswith(got):
            self.bad = True
        return self._left - len(got), position + len(got)

    def _open(self, size_line: bytes, position: int, data: bytes) -> int:
        size = _size(size_line.partition(b";")[0].strip())
        if size < 0:
            self.bad = True
            return position
        if size:
            self._left = size + 2
            return position
        # After the last chunk come trailer fields, none as a rule, and a blank line.
        if data[position : position + 2] == b"\r\n":
            self.whole = True
        elif (blank := data.find(b"\r\n\r\n", position)) >= 0:
            self.whole = True
            position = blank
        else:
            self._pending = size_line + b"\r\n" + data[position:]
            return len(data)
        return position


def _size(digits: bytes) -> int:
    """Return a chunk's size, or −1 for what is no hexadecimal number (``int`` would take signs and underscores)."""
    return int(digits, 16) if digits and not digits.translate(None, _HEX) else -1

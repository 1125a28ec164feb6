"""HTTP/1.1 as a server needs it: an incremental request parser and response heads."""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import ClassVar, Final

from tokenweir.core.errors import InputError

MAX_HEAD_BYTES: Final = 65_536
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"[!-~]+")
_DIGITS: Final = re.compile(rb"[0-9]+")
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")
_MAX_CHUNK_LINE: Final = 4096
_REQUEST_LINE_PARTS: Final = 3
_MAX_LENGTH_DIGITS: Final = 18
_FAR_TOO_LONG: Final = 1 << 62
_SHORT_HEAD: Final = 1024


class HttpError(InputError):
    """A request that HTTP itself refuses; ``status`` is the answer's."""

    code = "bad_request"
    exit_code: ClassVar[int] = 2

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Head:
    """What stands before a body. ``length`` is the body's, −1 where it is chunked; ``modern`` is HTTP/1.1."""

    __slots__ = ("expects_continue", "headers", "keep_alive", "length", "method", "modern", "path", "query")

    def __init__(self, line: bytes, headers: dict[bytes, bytes]) -> None:
        parts = line.split(b" ")
        if (
            len(parts) != _REQUEST_LINE_PARTS
            or not _TOKEN.fullmatch(parts[0])
            or not _TARGET.fullmatch(parts[1])
            or not parts[2].startswith(b"HTTP/")
        ):
            raise HttpError(400, f"no HTTP request line: {line[:80]!r}")
        if parts[2] not in {b"HTTP/1.1", b"HTTP/1.0"}:
            raise HttpError(505, f"unknown HTTP version {parts[2][:16]!r}")
        self.method = parts[0].decode("ascii")
        self.path, _, self.query = parts[1].decode("ascii").partition("?")
        self.headers = headers
        self.modern = parts[2] == b"HTTP/1.1"
        wish = headers.get(b"connection", b"").lower()
        self.keep_alive = b"close" not in wish if self.modern else b"keep-alive" in wish
        self.expects_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self.length = _body_length(headers)


def _body_length(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length")
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise HttpError(400, "a body has a content-length or is chunked, not both")
        if coding.lower() != b"chunked":
            raise HttpError(501, f"unknown transfer-encoding {coding[:40]!r}")
        return -1
    if length is None:
        return 0
    if not _DIGITS.fullmatch(length):
        raise HttpError(400, f"content-length {length[:40]!r} is no number")
    return int(length) if len(length) <= _MAX_LENGTH_DIGITS else _FAR_TOO_LONG


def _read_head(data: bytes) -> Head:
    """Return what the bytes before a blank line say. Raises HttpError."""
    line, _, rest = data.partition(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for one in rest.split(b"\r\n") if rest else ():
        name, colon, value = one.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise HttpError(400, f"no HTTP header: {one[:80]!r}")
        name = name.lower()
        if name in headers and name in {b"content-length", b"transfer-encoding", b"host"}:
            raise HttpError(400, f"the header {name.decode('ascii')} comes twice")
        headers[name] = value.strip(b" \t")
    return Head(line, headers)


# A client's heads are alike to the byte, so most are read once.
_read_short_head = lru_cache(maxsize=1024)(_read_head)


class Request:
    """A whole request. ``path`` has no query; header names are lower-case; ``keep_alive`` is its wish.

    ``modern`` is false for HTTP/1.0. ``headers`` may be shared with other requests.
    """

    __slots__ = ("body", "headers", "keep_alive", "method", "modern", "path", "query")

    def __init__(self, head: Head) -> None:
        self.method = head.method
        self.path = head.path
        self.query = head.query
        self.headers = head.headers
        self.modern = head.modern
        self.keep_alive = head.keep_alive
        self.body: bytes = b""


class RequestParser:
    """Turns fed bytes into requests, whatever way they are split; pipelined ones come one at a time.

    Feed ``b""`` after a request has been dealt with to get the next one that is already here. Once it has
    raised, a parser is of no further use: what follows cannot be told apart.
    """

    __slots__ = ("_body", "_buffer", "_chunked", "_max_body", "_request", "_wanted", "expects_continue")

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._buffer = b""
        self._request: Request | None = None
        self._wanted = 0
        self._chunked = False
        self._body: list[bytes] = []
        self.expects_continue = False
        """Whether the client waits for ``100 Continue`` before it sends the body; to be cleared after."""

    @property
    def held(self) -> int:
        """Bytes fed and not yet part of a request."""
        return len(self._buffer)

    @property
    def idle(self) -> bool:
        """Whether nothing of a further request has been fed."""
        return not self._buffer and self._request is None

    def feed(self, data: bytes) -> Request | None:
        """Return the next request if ``data`` completes it. Raises HttpError with the status to answer."""
        buffer = self._buffer + data if self._buffer else data
        request = self._request
        if request is None:
            buffer = buffer.lstrip(b"\r\n") if buffer[:1] in {b"\r", b"\n"} else buffer
            end = buffer.find(b"\r\n\r\n")
            if end > MAX_HEAD_BYTES or (end < 0 and len(buffer) > MAX_HEAD_BYTES):
                raise HttpError(431, f"the header is longer than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                self._buffer = buffer
                return None
            request = self._begin(buffer[:end])
            buffer = buffer[end + 4 :]
        if self._chunked:
            return self._feed_chunks(request, buffer)
        wanted = self._wanted
        if len(buffer) < wanted:
            # A long body is gathered in pieces, because joining it anew at every read would be quadratic.
            self._request = request
            self._body.append(buffer)
            self._wanted = wanted - len(buffer)
            self._buffer = b""
            return None
        self._request = None
        if self._body:
            self._body.append(buffer[:wanted])
            request.body = b"".join(self._body)
            self._body = []
        elif wanted:
            request.body = buffer[:wanted]
        self._buffer = buffer[wanted:]
        self._wanted = 0
        return request

    def hold(self, data: bytes) -> None:
        """Keep ``data`` for a later :meth:`feed`."""
        self._buffer += data

    def _begin(self, data: bytes) -> Request:
        head = _read_short_head(data) if len(data) <= _SHORT_HEAD else _read_head(data)
        if head.length > self._max_body:
            raise HttpError(413, f"the body is longer than {self._max_body} bytes")
        self._chunked = head.length < 0
        self._wanted = max(head.length, 0)
        self._body = []
        if head.expects_continue:
            self.expects_continue = True
        return Request(head)

    def _feed_chunks(self, request: Request, buffer: bytes) -> Request | None:
        """Take whole chunks off ``buffer``; ``_wanted`` counts the body so far, −1: trailers follow."""
        at = 0
        while True:
            end = buffer.find(b"\r\n", at)
            if end < 0:
                if len(buffer) - at > _MAX_CHUNK_LINE:
                    raise HttpError(400, "a chunk's size line is too long")
                break
            line = buffer[at:end]
            if self._wanted < 0:
                at = end + 2
                if not line:
                    request.body = b"".join(self._body)
                    self._body = []
                    self._wanted = 0
                    self._request = None
                    self._buffer = buffer[at:]
                    self._chunked = False
                    return request
                continue
            size_text = line.partition(b";")[0].strip(b" \t")
            if not _HEX.fullmatch(size_text):
                raise HttpError(400, f"no chunk size: {line[:40]!r}")
            size = int(size_text, 16)
            if self._wanted + size > self._max_body:
                raise HttpError(413, f"the body is longer than {self._max_body} bytes")
            if size == 0:
                at = end + 2
                self._wanted = -1
                continue
            after = end + 2 + size
            if len(buffer) < after + 2:
                break
            if buffer[after : after + 2] != b"\r\n":
                raise HttpError(400, "a chunk is longer than its size says")
            self._body.append(buffer[end + 2 : after])
            self._wanted += size
            at = after + 2
        self._request = request
        self._buffer = buffer[at:]
        return None


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

SSE: Final = "text/event-stream; charset=utf-8"
JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"


def head(
    status: int,
    content_type: str,
    *,
    length: int | None = None,
    extra: tuple[tuple[str, str], ...] = (),
    keep_alive: bool = True,
) -> bytes:
    """Return a response head, the blank line included; without ``length`` the body is chunked."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", f"content-type: {content_type}"]
    lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
    lines.extend(f"{name}: {value}" for name, value in extra)
    if not keep_alive:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

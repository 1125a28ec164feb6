"""The lines of a batch's file: read one by one, understood, and turned into requests."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, NamedTuple

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.ids import uuid7
from tokenweir.gateway.direct.body import read
from tokenweir.gateway.queued.accepting import Wish
from tokenweir.gateway.queued.kept import Kept
from tokenweir.gateway.responses.asked import convert, read_asked
from tokenweir.gateway.responses.shelf import Shelf
from tokenweir.ports.access import Caller

RESPONSES: Final = "/v1/responses"
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", RESPONSES)
ROUTE: Final = "batch"
_CUSTOM_ID: Final = 512
_INPUTS: Final = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}
_LINE_NS: Final = 1_000


class RawLine(NamedTuple):
    """A line of a file as it stands there; ``number`` is counted from 1."""

    number: int
    data: bytes


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line that is understood."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class TooLongError(ParameterError):
    """A line is longer than a request may be."""


async def raw_lines(pieces: AsyncIterator[bytes], *, most_bytes: int) -> AsyncGenerator[RawLine]:
    """Yield the lines that are not blank. Raises TooLongError, in whose message the line's number is."""
    number = 0
    left = b""
    async for piece in pieces:
        *whole, left = (left + piece).split(b"\n")
        for data in whole:
            number += 1
            if data.strip():
                yield RawLine(number, _bounded(data, number, most_bytes))
        _bounded(left, number + 1, most_bytes)
    if left.strip():
        yield RawLine(number + 1, left)


def _bounded(data: bytes, number: int, most_bytes: int) -> bytes:
    if len(data) > most_bytes:
        raise TooLongError(
            f"line {number} is longer than {most_bytes} bytes", param="body", reason="line_too_long"
        )
    return data


def understood(raw: RawLine, endpoint: str) -> Line:
    """Return what a line says. Raises ParameterError, in whose message its number is."""
    this = f"line {raw.number}"
    try:
        fields = msgspec.json.decode(raw.data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ParameterError(
            f"{this} is no JSON object: {error}",
            param="line",
            reason="invalid_json_line",
            mend="one object a line",
        ) from error
    values = {name: value if name == "body" else _plain(value) for name, value in fields.items()}
    line = convert(values, Line, what=this)
    if not 0 < len(line.custom_id) <= _CUSTOM_ID:
        raise ParameterError(
            f"the custom_id of {this} is not 1 to {_CUSTOM_ID} letters",
            param="custom_id",
            reason="invalid_custom_id",
        )
    if line.method != "POST":
        raise ParameterError(
            f"the method of {this} is {line.method[:20]!r}",
            param="method",
            reason="invalid_method",
            mend="write POST",
        )
    if line.url != endpoint:
        raise ParameterError(
            f"the url of {this} is {line.url[:80]!r}, and the batch is of {endpoint}",
            param="url",
            reason="mismatched_endpoint",
            mend="make a batch for each endpoint",
        )
    return line


def _plain(value: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


async def wish_of(shelf: Shelf, caller: Caller, raw: RawLine, line: Line, *, request: bytes) -> Wish:
    """Return the request that a line makes. Raises ParameterError."""
    body = bytes(line.body)
    if line.url == RESPONSES:
        asked = read_asked(body)
        if asked.stream or asked.background:
            raise _alone("stream" if asked.stream else "background")
        wish = await shelf.wish(caller, asked, raw=body, request=request)
        return msgspec.structs.replace(wish, mode="single", said=raw.data, priority=0)
    found = read(body)
    if found.stream:
        raise _alone("stream")
    wanted = _INPUTS[line.url]
    if not bytes(getattr(found, wanted)):
        raise ParameterError(
            f"the body has no {wanted}", param=f"body.{wanted}", reason="missing_required_parameter"
        )
    kept = Kept(path=line.url, body=msgspec.Raw(body), pool=caller.pool)
    return Wish(kept=kept, mode="single", route=ROUTE, said=raw.data, priority=0)


def _alone(name: str) -> ParameterError:
    return ParameterError(
        f"body.{name} is true",
        param=f"body.{name}",
        reason="unsupported_parameter",
        mend="leave it out in a batch",
    )


def request_of(batch: bytes, at: int, number: int) -> bytes:
    """Return the id of a line's request: always the same one, so that a line is taken on once."""
    bits = hashlib.blake2b(batch + number.to_bytes(8, "big"), digest_size=8).digest()
    return uuid7(at + number * _LINE_NS, int.from_bytes(bits, "big")).to_bytes(16, "big")


def file_of(batch: bytes, at: int, kind: str) -> bytes:
    """Return the id of a file that a batch makes: always the same one, so that it is made anew and not twice."""
    bits = hashlib.blake2b(batch + kind.encode(), digest_size=8).digest()
    return uuid7(at, int.from_bytes(bits, "big")).to_bytes(16, "big")

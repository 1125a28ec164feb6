"""What went wrong, in the engine's own words: from a status, an error body or an error event in a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, cast

import msgspec

from tokenweir.core.errors import (
    EndpointError,
    OverloadedError,
    ProtocolError,
    RefusedError,
    UnreachableError,
    UpstreamError,
)
from tokenweir.core.events import Failed
from tokenweir.ports.backend import HttpResponse

NS_PER_S: Final = 1_000_000_000
LONGEST_QUOTE: Final = 300
"""Characters of the engine's words that a message repeats."""

CLASSES: Final[Mapping[int, type[EndpointError]]] = {
    401: RefusedError,
    403: RefusedError,
    404: RefusedError,
    429: OverloadedError,
    503: OverloadedError,
}
"""Error class by HTTP status; any other status is an UpstreamError."""

MENDS: Final[Mapping[int, str]] = {
    400: "change the request: the server names the field",
    401: "set --key env:NAME to a variable that holds the server's key",
    403: "set --key env:NAME to a key that may use this model",
    404: "check the URL and --model",
    413: "send a shorter prompt",
    422: "change the request: the server names the field",
    429: "lower the load, or wait as long as the server says",
    503: "wait until the server has started, or lower the load",
}
"""What to do about an HTTP status; 5xx without an entry point at the server's log."""

OVERLOAD_WORDS: Final = re.compile(r"rate_?limit|overload|queue[ _]is[ _]full|429|503", re.IGNORECASE)
"""Error types and codes by which engines say "later" inside a 200 stream."""


class Complaint(NamedTuple):
    """An engine's own account of an error. ``status`` is the HTTP status it names, if any."""

    message: str
    status: int | None = None
    tag: str = ""


def quote(text: str) -> str:
    """Return ``text`` on one line, cut to a length a terminal can bear."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 1] + "…"


def complaint(body: bytes) -> Complaint | None:
    """Return the error that a JSON body tells of, or ``None`` when it tells of none.

    Knows ``{"error": {"message", "type", "code"}}``, ``{"error": "…"}``, ``{"object": "error", "message"}``
    and ``{"detail": …}``.
    """
    try:
        told: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    fields = cast("dict[str, object]", told)
    inner = fields.get("error")
    if isinstance(inner, dict):
        fields = cast("dict[str, object]", inner)
    elif inner:
        return Complaint(quote(_words(inner)), _status(fields.get("code")))
    elif fields.get("object") != "error" and "choices" in fields:
        return None
    for name in ("message", "detail"):
        if name in fields and fields[name] is not None:
            code = fields.get("code")
            tag = f"{_words(fields.get('type'))} {_words(code)}"
            return Complaint(quote(_words(fields[name])), _status(code), tag.strip())
    if isinstance(inner, dict):
        return Complaint(quote(_words(cast("object", inner))))
    return None


def http_error(response: HttpResponse) -> EndpointError:
    """Return the error that an answer other than a good one means, with the engine's words and the mend."""
    status = response.status
    if status == 0:
        return UnreachableError("the server gave no answer", mend="check the URL and that the server runs")
    said = complaint(response.body)
    words = said.message if said is not None else quote(response.body.decode(errors="replace"))
    message = f"the server answered {status}" + (f": {words}" if words else "")
    mend = MENDS.get(status, "see the server's log" if status >= 500 else "")  # noqa: PLR2004
    kind = CLASSES.get(status, UpstreamError)
    if kind is OverloadedError:
        retry_after_ns = _retry_after_ns(response.headers)
        return OverloadedError(message, mend=mend, status=status, retry_after_ns=retry_after_ns)
    return kind(message, mend=mend, status=status)


def failed(seq: int, said: Complaint) -> Failed:
    """Return the event for an error that came inside an answer with status 200."""
    if said.status is not None:
        kind = CLASSES.get(said.status, UpstreamError)
    else:
        kind = OverloadedError if OVERLOAD_WORDS.search(said.tag) else UpstreamError
    return Failed(seq=seq, kind=kind.code, message=said.message, status=said.status, retryable=kind.retryable)


def broken(seq: int, message: str) -> Failed:
    """Return the event for an answer that is not what the protocol promises."""
    return Failed(seq=seq, kind=ProtocolError.code, message=message, retryable=ProtocolError.retryable)


def _words(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _status(code: object) -> int | None:
    if isinstance(code, str) and code.isdecimal() and code.isascii():
        code = int(code[:4])
    return code if isinstance(code, int) and 400 <= code <= 599 else None  # noqa: PLR2004


def _retry_after_ns(headers: Mapping[str, str]) -> int | None:
    """Read Retry-After: seconds, or a date, which needs the server's own Date to be compared with."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value, re.ASCII):
        return int(float(value) * NS_PER_S)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return max(0, int(wait.total_seconds() * NS_PER_S))

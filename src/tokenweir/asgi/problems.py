"""Errors as HTTP answers: every error of ours becomes OpenAI's error body in this one place."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from tokenweir.core.errors import (
    BrownedOutError,
    GuidanceError,
    InputError,
    OverloadedError,
    ParameterError,
    ServingError,
    UnavailableError,
    WeirError,
)
from tokenweir.core.events import Cancelled, Failed

_NS_PER_S: Final = 1_000_000_000
_DEFAULT_RETRY_S: Final = 1
_RETRY_LATER: Final = frozenset({429, 503})
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SHOWN: Final = 60
_QUOTING: Final = (ParameterError, GuidanceError)
"""Errors whose messages repeat what the client wrote, which may be its prompt."""
_BAD_REQUESTS: Final = range(400, 500)


class UnknownPathError(InputError):
    """There is no such route."""

    code = "unknown_path"
    http_status = 404


class MethodError(InputError):
    """The route exists, under another method; ``allowed`` names it."""

    code = "method_not_allowed"
    http_status = 405

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message, mend=f"use {allowed}")
        self.allowed = allowed


class BodyTooLargeError(InputError):
    """The body is longer than the settings allow."""

    code = "body_too_large"
    http_status = 413


class HeadTooLargeError(InputError):
    """The request's line and headers are longer than the settings allow."""

    code = "head_too_large"
    http_status = 431


class ContentTypeError(InputError):
    """The body is not announced as JSON."""

    code = "unsupported_media_type"
    http_status = 415


class SlowRequestError(InputError):
    """The request did not arrive in time."""

    code = "request_timeout"
    http_status = 408


class NotJsonError(InputError):
    """The body is no JSON object."""

    code = "invalid_json"


class FailedError(WeirError):
    """An answer that ended in a ``Failed`` event; status, code and advice are the event's."""

    def __init__(self, event: Failed) -> None:
        super().__init__(event.message or event.kind)
        self.kind = event.kind
        self.status = event.status or 500
        self.later = event.retryable
        self.retry_after_ns = event.retry_after_ns


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error, and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str
    mend: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as an HTTP answer. ``retry_after_s`` goes into the header of that name, ``more`` are others."""

    status: int
    error: ErrorBody
    retry_after_s: int | None = None
    allow: str = ""
    degraded: str = ""
    more: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        return msgspec.json.encode({"error": self.error})

    @property
    def event(self) -> bytes:
        """The same as an event of a stream that has begun."""
        return b"data: " + self.body + b"\n\n"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that belong to it."""
        found = list(self.more)
        if self.retry_after_s is not None:
            found.append((b"retry-after", b"%d" % self.retry_after_s))
        if self.allow:
            found.append((b"allow", self.allow.encode()))
        if self.degraded:
            found.append((b"x-weir-degraded", self.degraded.encode()))
        return found


def problem(error: WeirError) -> Problem:
    """Return the answer that an error means."""
    status, code, retry_ns = error.http_status, error.code, None
    if isinstance(error, FailedError):
        status, code, retry_ns = error.status, error.kind, error.retry_after_ns
    elif isinstance(error, ServingError | OverloadedError):
        retry_ns = error.retry_after_ns
    if isinstance(error, ParameterError):
        code = error.reason
    if isinstance(error, BrownedOutError):
        status = error.status
    retry_s = None
    if retry_ns is not None or status in _RETRY_LATER:
        retry_s = max(_DEFAULT_RETRY_S, math.ceil((retry_ns or 0) / _NS_PER_S))
    return Problem(
        status=status,
        error=ErrorBody(
            message=str(error),
            type=_TYPES.get(status, "invalid_request_error" if status in _BAD_REQUESTS else "server_error"),
            param=error.param if isinstance(error, ParameterError) else None,
            code=code,
            mend=error.mend,
        ),
        retry_after_s=retry_s,
        allow=error.allowed if isinstance(error, MethodError) else "",
        degraded=error.degraded if isinstance(error, BrownedOutError) else "",
    )


def logged(error: WeirError, *, quotes: bool = False) -> dict[str, object]:
    """Return what the log tells of an error: without ``quotes`` nothing that repeats what the client wrote."""
    told: dict[str, object] = {"error.type": error.code}
    if isinstance(error, ParameterError):
        told |= {"error.reason": error.reason, "error.param": error.param[:_SHOWN]}
    if quotes or not isinstance(error, _QUOTING):
        told["error.message"] = error.message
    return told


def failure(event: Failed | Cancelled) -> WeirError:
    """Return the error that an answer's bad end means."""
    if isinstance(event, Cancelled):
        return UnavailableError("the request was cancelled by the server", mend="send it again")
    return FailedError(event)

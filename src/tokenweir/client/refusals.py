"""A gateway's refusals as errors of :mod:`tokenweir.core.errors`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from tokenweir.core.errors import (
    ConflictError,
    DeadlineError,
    DrainingError,
    ForbiddenError,
    InputError,
    NotFoundError,
    OverloadedError,
    ParameterError,
    ProtocolError,
    QuotaExceededError,
    TooManyStreamsError,
    UnauthorizedError,
    UnavailableError,
    UpstreamError,
    WeirError,
)

RETRYABLE: Final = frozenset({408, 429, 502, 503, 504})
"""Statuses after which the same request may succeed: it was not taken on, or a lost answer is given again."""
_REFUSED: Final = range(400, 500)
_ERROR: Final = range(400, 600)
_GATEWAY_TIMEOUT: Final = 504
_S: Final = 1_000_000_000
_LONGEST_S: Final = 366 * 86_400


class _Error(msgspec.Struct, frozen=True):
    message: str
    code: str | None = None
    param: str | None = None
    mend: str = ""


class _Body(msgspec.Struct, frozen=True):
    error: _Error


_SIMPLE: Final[Mapping[int, Callable[..., WeirError]]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
}
_LATER: Final[Mapping[str, Callable[..., WeirError]]] = {
    "rate_limit_exceeded": QuotaExceededError,
    "too_many_streams": TooManyStreamsError,
    "overloaded": OverloadedError,
    "draining": DrainingError,
    "unavailable": UnavailableError,
}
_decode = msgspec.json.Decoder(_Body).decode


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> WeirError:
    """Return the error that an answer other than a good one means."""
    try:
        told = _decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if status not in _ERROR:
            return ProtocolError(f"the answer {status} was not expected here", status=status)
        # A proxy before the gateway answers in its own words.
        told = _Error(f"it answered {status}")
    message = told.message.removesuffix(f"; {told.mend}") if told.mend else told.message
    if status in RETRYABLE:
        return _later(status, told, message, retry_after_ns(headers))
    if status not in _REFUSED:
        return UpstreamError(message, mend=told.mend, status=status)
    if status not in _SIMPLE and told.param is not None:
        return ParameterError(message, param=told.param, reason=told.code or "invalid_value", mend=told.mend)
    return _SIMPLE.get(status, InputError)(message, mend=told.mend)


def _later(status: int, told: _Error, message: str, wait_ns: int | None) -> WeirError:
    """Return the error of a request that may succeed later."""
    if told.code in _LATER:
        return _LATER[told.code](message, mend=told.mend, retry_after_ns=wait_ns)
    if status == _GATEWAY_TIMEOUT:
        return DeadlineError(message, mend=told.mend, retry_after_ns=wait_ns)
    return OverloadedError(message, mend=told.mend, status=status, retry_after_ns=wait_ns)


def told_amid(body: bytes) -> WeirError:
    """Return the error that a stream was ended with."""
    try:
        told = _decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return ProtocolError(f"what the stream says cannot be read: {error}", mend="is it a gateway's URL?")
    return _LATER.get(told.code or "", UpstreamError)(told.message, mend=told.mend)


def retry_after_ns(headers: Mapping[str, str]) -> int | None:
    """Return when to come back, of ``Retry-After`` in seconds; ``None`` where it is not said so."""
    said = headers.get("retry-after", "")
    if not (said.isascii() and said.isdigit()):
        return None
    return min(int(said), _LONGEST_S) * _S

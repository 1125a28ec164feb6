"""JSON-RPC 2.0 around the bridge's messages: what both sides write and read. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeVar

import msgspec

from tokenweir.core.errors import ProtocolError
from tokenweir.runtime.bridge.framing import seal
from tokenweir.runtime.bridge.messages import LENGTH_BYTES, METHODS, TO_CHILD, TO_SERVER, Call, Code, Fault

_NOTHING: Final = msgspec.Raw(b"")

MessageT = TypeVar("MessageT", bound=msgspec.Struct)


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call of a method."""

    jsonrpc: Literal["2.0"] = "2.0"
    id: int
    method: str
    params: msgspec.Struct


class Notice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A notification: nobody answers it."""

    jsonrpc: Literal["2.0"] = "2.0"
    method: str
    params: msgspec.Struct


class Success(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to a call."""

    jsonrpc: Literal["2.0"] = "2.0"
    id: int
    result: msgspec.Struct


class Failure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The error that answers a call; ``id`` is null where the call could not be read."""

    jsonrpc: Literal["2.0"] = "2.0"
    id: int | None
    error: Fault


Envelope = Request | Notice | Success | Failure


class Incoming(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Whatever came, its inside not decoded yet."""

    jsonrpc: Literal["2.0"]
    id: int | None = None
    method: str | None = None
    params: msgspec.Raw = _NOTHING
    result: msgspec.Raw = _NOTHING
    error: Fault | None = None


class Schemas:
    """Decoders of one direction's messages, made once: building one costs far more than using it."""

    __slots__ = ("_decoders",)

    def __init__(self, types: Mapping[str, type[msgspec.Struct]]) -> None:
        self._decoders = {method: msgspec.json.Decoder(kind) for method, kind in types.items()}

    def __contains__(self, method: object) -> bool:
        return method in self._decoders

    def decode(self, method: str, raw: msgspec.Raw) -> msgspec.Struct:
        """Return the message. Raises ProtocolError that names the method and the field that does not fit."""
        try:
            return self._decoders[method].decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProtocolError(f"the message of {method!r} does not fit its schema: {error}") from error


CALLS: Final = Schemas({method: params for method, (params, _) in METHODS.items()})
"""What methods are asked with."""

ANSWERS: Final = Schemas({method: answer for method, (_, answer) in METHODS.items()})
"""What methods are answered with."""

CHILD_NOTICES: Final = Schemas(TO_CHILD)
"""What the server notifies the child of."""

SERVER_NOTICES: Final = Schemas(TO_SERVER)
"""What the child notifies the server of."""

METHOD_OF: Final[Mapping[type[Call], str]] = {params: method for method, (params, _) in METHODS.items()}
"""The method that a type of parameters belongs to."""

NOTICE_OF: Final[Mapping[type[msgspec.Struct], str]] = {
    kind: method for method, kind in (*TO_CHILD.items(), *TO_SERVER.items())
}
"""The method of each notification."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Incoming)


def frame(envelope: Envelope) -> bytearray:
    """Return the envelope as one frame.

    Raises:
        ProtocolError: it is too long for a frame, or holds text that is no Unicode.
    """
    buffer = bytearray(LENGTH_BYTES)
    try:
        _encoder.encode_into(envelope, buffer, LENGTH_BYTES)
    except UnicodeEncodeError as error:
        raise ProtocolError(f"a message holds text that is no Unicode: {error.reason}") from error
    return seal(buffer)


def parse(payload: bytes) -> Incoming:
    """Return what a frame holds. Raises ProtocolError for what is not JSON-RPC 2.0."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a frame is not JSON-RPC 2.0: {error}") from error


def parse_fault(error: ProtocolError, payload: bytes) -> Fault:
    """Return the fault that answers a frame which :func:`parse` refused: not JSON at all, or not a request."""
    try:
        msgspec.json.decode(payload, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Fault(code=Code.PARSE, message=error.message)
    return Fault(code=Code.INVALID_REQUEST, message=error.message)

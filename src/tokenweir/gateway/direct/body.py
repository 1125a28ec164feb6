"""What the gateway reads of a request's body, and the little it changes: bytes pass as they are where they can."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json

_NOTHING: Final = msgspec.Raw()
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a body that is no JSON."""
_ASK_USAGE: Final = b'{"stream_options":{"include_usage":true},'


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class RequestBody(msgspec.Struct):
    """The fields that decide how a request is routed and metered; all others pass unread."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING

    @property
    def limit(self) -> int | None:
        """The most output tokens of one choice that the caller allows."""
        return next(
            (
                value
                for value in (self.max_completion_tokens, self.max_tokens, self.max_output_tokens)
                if value is not None
            ),
            None,
        )

    @property
    def shows_usage(self) -> bool:
        """Whether the caller asked for a usage chunk."""
        return isinstance(self.stream_options, _StreamOptions) and bool(self.stream_options.include_usage)

    @property
    def prompt_bytes(self) -> int:
        """The length of what the model is given, as JSON."""
        size = 0
        for raw in (self.messages, self.prompt, self.input, self.tools):
            if raw is not _NOTHING:
                size += len(memoryview(raw))
        return size


_decoder = msgspec.json.Decoder(RequestBody)


def no_json(error: Exception) -> ParameterError:
    """Return how a body is refused that cannot be decoded."""
    return ParameterError(
        f"the body is no JSON: {error}", param="body", reason="invalid_json", mend="send a JSON object"
    )


def fields_of(body: bytes) -> dict[str, Json]:
    """Return the fields of a body. Raises ParameterError for one that is no JSON object."""
    try:
        fields: object = msgspec.json.decode(body)
    except UNDECODABLE as error:
        raise no_json(error) from error
    if not isinstance(fields, dict):
        raise ParameterError(
            "the body is no JSON object", param="body", reason="invalid_json", mend="send a JSON object"
        )
    return cast("dict[str, Json]", fields)


def read(body: bytes) -> RequestBody:
    """Read a body. Raises ParameterError naming the field that cannot be used."""
    try:
        read = _decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        field = message.rpartition("$.")[2].rstrip("`") if "$." in message else ""
        if "missing required field" in message:
            raise ParameterError(
                "the request names no model",
                param="model",
                reason="missing_required_parameter",
                mend="GET /v1/models lists those there are",
            ) from error
        raise ParameterError(
            f"the request cannot be used: {message}",
            param=field or "body",
            reason="invalid_type",
            mend="see the OpenAI interface for this field's type",
        ) from error
    except UNDECODABLE as error:
        raise no_json(error) from error
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
        value = getattr(read, name)
        if value is not None and value < 1:
            raise ParameterError(
                f"{name} is {value}",
                param=name,
                reason="invalid_value",
                mend="give 1 or more, or leave it out",
            )
    return read


def for_upstream(body: bytes, read: RequestBody, *, model: str, most_tokens: int | None = None) -> bytes:
    """Return the body to send: the server's name of the model, usage asked for in a stream, output bounded."""
    wants_usage = bool(read.stream) and not read.shows_usage
    renamed = model != read.model
    bounded = most_tokens is not None and (read.limit is None or read.limit > most_tokens)
    if not (renamed or bounded):
        if not wants_usage:
            return body
        if read.stream_options is msgspec.UNSET:
            start = body.index(b"{")
            return _ASK_USAGE + body[start + 1 :]
    fields: dict[str, Any] = msgspec.json.decode(body)
    fields["model"] = model
    if wants_usage:
        fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    if bounded:
        name = next(
            (
                name
                for name in ("max_completion_tokens", "max_tokens", "max_output_tokens")
                if fields.get(name) is not None
            ),
            "max_tokens",
        )
        fields[name] = most_tokens
    return msgspec.json.encode(fields)

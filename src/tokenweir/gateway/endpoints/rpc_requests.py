"""OpenAI's bodies as messages of ``tokenweir.v1``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import GenerateRequest, Json, Kind, Message, Sampling, Tool, ToolCall
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.requests import to_request

_SAMPLING: Final = (
    *("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed", "n", "min_tokens"),
    "ignore_eos",
)
_LIMITS: Final = ("max_completion_tokens", "max_tokens")
_OURS: Final = frozenset({"model", "stream", "stream_options", "user", "metadata", "store"})
"""Fields that say nothing of the answer, or are said otherwise."""
_MEND: Final = "leave it out, or let the endpoint be asked over http://"


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct):
    id: str = ""
    function: _Function = msgspec.field(default_factory=_Function)


class _Turn(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _ToolFunction(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    function: _ToolFunction


def generate_request(kind: Kind, body: Mapping[str, Json], *, model: str) -> pb.GenerateRequest:
    """Return the message for a chat or completion body.

    Raises:
        ParameterError: it says something that the message cannot.
    """
    fields: dict[str, Json] = {
        name: value for name, value in body.items() if value is not None and name not in _OURS
    }
    sampling = _sampling(kind, fields)
    made = GenerateRequest(
        kind=kind,
        model=model,
        messages=tuple(map(_message, _read("messages", fields.pop("messages", []), list[_Turn]))),
        prompt=_prompt(fields.pop("prompt", "")),
        sampling=sampling,
        tools=tuple(map(_tool, _read("tools", fields.pop("tools", []), list[_Tool]))),
        tool_choice=_read("tool_choice", fields.pop("tool_choice", None), str | dict[str, Any] | None),
        response_format=_read("response_format", fields.pop("response_format", None), dict[str, Any] | None),
    )
    if fields:
        name = min(fields)
        raise ParameterError(f"{name!r} cannot be said over gRPC", param=name, mend=_MEND)
    return to_request(made)


def embed_request(body: Mapping[str, Json], *, model: str) -> pb.EmbedRequest:
    """Return the message for an embedding body. Raises ParameterError."""
    inputs = _read("input", body.get("input"), str | list[str])
    if body.get("encoding_format") not in {None, "float"} or body.get("dimensions") is not None:
        raise ParameterError("vectors go over gRPC as floats, whole", param="encoding_format", mend=_MEND)
    return pb.EmbedRequest(model=model, inputs=[inputs] if isinstance(inputs, str) else inputs)


def _sampling(kind: Kind, fields: dict[str, Json]) -> Sampling:
    values: dict[str, Json] = {name: fields.pop(name) for name in _SAMPLING if name in fields}
    limits = [fields.pop(name, None) for name in _LIMITS]
    values["max_tokens"] = next((limit for limit in limits if limit is not None), None)
    stop = fields.pop("stop", None)
    values["stop"] = [] if stop is None else [stop] if isinstance(stop, str) else stop
    wanted, top = fields.pop("logprobs", None), fields.pop("top_logprobs", None)
    if kind == "chat" and wanted:
        values["logprobs"] = top or 0
    elif kind == "completion":
        values["logprobs"] = wanted
    return _read("sampling", values, Sampling)


def _prompt(value: Json) -> str | tuple[int, ...]:
    return _read("prompt", value, str | tuple[int, ...])


def _message(turn: _Turn) -> Message:
    content = turn.content
    return Message(
        role=turn.role,
        content=tuple(content) if isinstance(content, list) else content,
        name=turn.name,
        tool_calls=tuple(
            ToolCall(index=at, id=call.id, name=call.function.name, arguments=call.function.arguments)
            for at, call in enumerate(turn.tool_calls or ())
        ),
        tool_call_id=turn.tool_call_id,
    )


def _tool(tool: _Tool) -> Tool:
    function = tool.function
    return Tool(
        name=function.name, description=function.description or "", parameters=function.parameters or {}
    )


def _read(param: str, value: object, kind: Any) -> Any:  # noqa: ANN401 - of any type
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ParameterError(f"{param!r} cannot be used: {error}", param=param, mend=_MEND) from error

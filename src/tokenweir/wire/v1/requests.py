"""Requests of the core, into messages and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import GenerateRequest, Json, Kind, Message, Sampling, Tool, ToolCall
from tokenweir.wire.v1 import inference_pb2 as pb

_KINDS: Final[dict[Kind, pb.Kind]] = {"chat": pb.KIND_CHAT, "completion": pb.KIND_COMPLETION}
_FROM_KIND: Final[dict[int, Kind]] = {pb.KIND_CHAT: "chat", pb.KIND_COMPLETION: "completion"}
_SAMPLING: Final = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
)


def to_request(request: GenerateRequest, options: pb.Options | None = None) -> pb.GenerateRequest:
    """Return the message for a request. Raises ParameterError for an embedding, which has a method of its own."""
    if request.kind not in _KINDS:
        raise ParameterError(f"the kind {request.kind!r} is not generated", param="kind", mend="call Embed")
    made = pb.GenerateRequest(
        kind=_KINDS[request.kind],
        model=request.model,
        messages=[to_message(one) for one in request.messages],
        sampling=_to_sampling(request.sampling),
        tools=[_to_tool(tool) for tool in request.tools],
        tool_choice_json=_json(request.tool_choice),
        response_format_json=_json(request.response_format),
        extra_json=_json(request.extra or None),
        options=options,
    )
    if request.kind == "completion":
        if isinstance(request.prompt, str):
            made.prompt_text = request.prompt
        else:
            made.prompt_tokens.ids.extend(request.prompt)
    return made


def from_request(made: pb.GenerateRequest, *, stream: bool = True) -> GenerateRequest:
    """Return the request that a message asks for.

    Raises:
        ParameterError: the kind is missing, or what should be JSON is not.
    """
    kind = _FROM_KIND.get(made.kind)
    if kind is None:
        raise ParameterError(
            f"the kind is {made.kind}", param="kind", mend="set KIND_CHAT or KIND_COMPLETION"
        )
    tokens = made.WhichOneof("prompt") == "prompt_tokens"
    choice = _parsed(made.tool_choice_json, "tool_choice_json")
    if choice is not None and not isinstance(choice, str | dict):
        raise _not("tool_choice_json", "a text or an object")
    return GenerateRequest(
        kind=kind,
        model=made.model,
        messages=from_messages(made.messages),
        prompt=tuple(made.prompt_tokens.ids) if tokens else made.prompt_text,
        sampling=_from_sampling(made.sampling),
        stream=stream,
        tools=tuple(_from_tool(at, tool) for at, tool in enumerate(made.tools)),
        tool_choice=choice,
        response_format=_table(made.response_format_json, "response_format_json"),
        extra=_table(made.extra_json, "extra_json") or {},
    )


def to_message(message: Message) -> pb.Message:
    """Return the message for one turn."""
    made = pb.Message(
        role=message.role,
        name=message.name,
        tool_calls=[to_call(call) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
    )
    if isinstance(message.content, str):
        made.text = message.content
    elif message.content is not None:
        made.parts_json = msgspec.json.encode(message.content).decode()
    return made


def from_messages(made: Iterable[pb.Message]) -> tuple[Message, ...]:
    """Return turns. Raises ParameterError for content parts that are none."""
    return tuple(_from_message(at, one) for at, one in enumerate(made))


def _from_message(at: int, made: pb.Message) -> Message:
    content: str | tuple[dict[str, Json], ...] | None = None
    match made.WhichOneof("content"):
        case "text":
            content = made.text
        case "parts_json":
            where = f"messages[{at}].parts_json"
            parts = _parsed(made.parts_json, where)
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                raise _not(where, "a list of objects")
            content = tuple(cast("list[dict[str, Json]]", parts))
        case _:
            pass
    return Message(
        role=made.role,
        content=content,
        name=made.name if made.HasField("name") else None,
        tool_calls=tuple(from_call(call) for call in made.tool_calls),
        tool_call_id=made.tool_call_id if made.HasField("tool_call_id") else None,
    )


def to_call(call: ToolCall) -> pb.ToolCall:
    """Return the message for a tool call, or a piece of one."""
    return pb.ToolCall(index=call.index, id=call.id, name=call.name, arguments=call.arguments)


def from_call(made: pb.ToolCall) -> ToolCall:
    """Return a tool call, or a piece of one."""
    return ToolCall(index=made.index, id=made.id, name=made.name, arguments=made.arguments)


def _to_tool(tool: Tool) -> pb.Tool:
    return pb.Tool(
        name=tool.name, description=tool.description, parameters_json=_json(tool.parameters or None)
    )


def _from_tool(at: int, made: pb.Tool) -> Tool:
    parameters = _table(made.parameters_json, f"tools[{at}].parameters_json") or {}
    return Tool(name=made.name, description=made.description, parameters=parameters)


def _to_sampling(sampling: Sampling) -> pb.Sampling:
    made = pb.Sampling(stop=sampling.stop, n=sampling.n, ignore_eos=sampling.ignore_eos)
    for name in _SAMPLING:
        value: int | float | None = getattr(sampling, name)
        if value is not None:
            setattr(made, name, value)
    return made


def _from_sampling(made: pb.Sampling) -> Sampling:
    told = {name: getattr(made, name) for name in _SAMPLING if made.HasField(name)}
    return Sampling(
        **told,
        stop=tuple(made.stop),
        n=made.n if made.HasField("n") else 1,
        ignore_eos=made.ignore_eos,
    )


def _json(value: Json) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()


def _parsed(text: str, param: str) -> Json:
    if not text:
        return None
    try:
        return cast("Json", msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError) as error:
        raise _not(param, f"JSON ({error})") from error


def _table(text: str, param: str) -> dict[str, Json] | None:
    value = _parsed(text, param)
    if value is None or isinstance(value, dict):
        return value
    raise _not(param, "an object")


def _not(param: str, wanted: str) -> ParameterError:
    return ParameterError(
        f"{param!r} is not {wanted}", param=param, mend=f"send {wanted.split(' (', maxsplit=1)[0]}"
    )

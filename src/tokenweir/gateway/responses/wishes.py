"""From a request for a response to the chat that an endpoint is asked, and what is kept beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json
from tokenweir.gateway.queued.accepting import Wish
from tokenweir.gateway.queued.kept import PATHS, Kept
from tokenweir.gateway.responses.asked import Asked, Format, Tool, convert, format_of, reasoning_of, tools_of
from tokenweir.gateway.responses.items import Item, kept_items, messages_of
from tokenweir.ports.intake import Mode

ROUTE: Final = "responses"
_CONVERSATION_BYTES: Final = 32 << 20


class Said(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a request for a response beside the chat.

    ``echo`` are the fields of the response that repeat the request, ``items`` its own input with ids, ``before`` the
    messages of the responses that it goes on from. ``stored`` says that its caller may come back to it; ``erased``
    that it was deleted.
    """

    echo: dict[str, Json] = {}
    items: list[Item] = []
    before: list[Json] = []
    background: bool = False
    stored: bool = True
    erased: bool = False


_decode = msgspec.json.Decoder(Said).decode


def said_of(kept: Kept) -> Said:
    """Return what was kept of a request for a response."""
    return _decode(kept.said)


class Choice(msgspec.Struct, frozen=True):
    """Tools, and how the model chooses among them."""

    tools: Sequence[Tool]
    choice: Json


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Allowed(msgspec.Struct, frozen=True):
    mode: str
    tools: list[dict[str, Json]]


def wish_of(asked: Asked, *, raw: bytes, before: Sequence[Json], suffix: str, pool: str) -> Wish:
    """Return what is to be taken on for a request, after the messages of the responses ``before`` it.

    ``suffix`` is what its id ends in. Raises ParameterError.
    """
    items = kept_items(asked.input, suffix)
    body = _chat(asked, [*before, *messages_of(items, place="input")])
    stream, background = bool(asked.stream), bool(asked.background)
    if stream:
        body["stream"] = True
    mode: Mode = "direct" if not background else "stream" if stream else "single"
    encoded = msgspec.json.encode(body)
    if len(encoded) > _CONVERSATION_BYTES:
        raise ParameterError(
            f"the conversation is longer than {_CONVERSATION_BYTES} bytes",
            param="previous_response_id" if before else "input",
            reason="conversation_too_long",
            mend="begin a new one",
        )
    said = Said(
        echo=_echo(asked),
        items=items,
        before=list(before),
        background=background,
        stored=asked.store is not False,
    )
    kept = Kept(
        path=PATHS["chat"],
        body=msgspec.Raw(encoded),
        pool=pool,
        said=msgspec.Raw(msgspec.json.encode(said)),
    )
    return Wish(kept=kept, mode=mode, route=ROUTE, said=raw)


def _chat(asked: Asked, messages: list[Json]) -> dict[str, Json]:
    if asked.instructions:
        messages = [{"role": "system", "content": asked.instructions}, *messages]
    body: dict[str, Json] = {"model": asked.model, "messages": messages}
    plain: dict[str, Json] = {
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "user": asked.user,
        "reasoning_effort": reasoning_of(asked).effort,
    }
    body.update({name: value for name, value in plain.items() if value is not None})
    chosen = _chosen(asked)
    if chosen.tools:
        body["tools"] = [_tool(tool) for tool in chosen.tools]
        if chosen.choice is not None:
            body["tool_choice"] = chosen.choice
        if asked.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = asked.parallel_tool_calls
    form = format_of(asked)
    if form.type != "text":
        body["response_format"] = _response_format(form)
    return body


def _tool(tool: Tool) -> Json:
    function: dict[str, Json] = {
        "name": tool.name,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _response_format(form: Format) -> Json:
    if form.type == "json_object":
        return {"type": "json_object"}
    schema: dict[str, Json] = {"name": form.name, "schema": form.schema}
    if form.description is not None:
        schema["description"] = form.description
    if form.strict is not None:
        schema["strict"] = form.strict
    return {"type": "json_schema", "json_schema": schema}


def _chosen(asked: Asked) -> Choice:
    """Return the tools to offer and the choice in the words of chats. Raises ParameterError."""
    tools, choice = tools_of(asked), asked.tool_choice
    if choice is None:
        return Choice(tools, None)
    if isinstance(choice, str):
        if choice not in {"none", "auto", "required"}:
            raise _no_choice(choice)
        if choice == "required" and not tools:
            raise _no_tool("required")
        return Choice(tools, choice)
    match choice.get("type"):
        case "function":
            name = convert(choice, _Named, place="tool_choice").name
            if name not in {tool.name for tool in tools}:
                raise _no_tool(name)
            return Choice(tools, {"type": "function", "function": {"name": name}})
        case "allowed_tools":
            allowed = convert(choice, _Allowed, place="tool_choice")
            names = [str(each.get("name")) for each in allowed.tools]
            absent = [name for name in names if name not in {tool.name for tool in tools}]
            if absent:
                raise _no_tool(absent[0])
            if allowed.mode not in {"auto", "required"}:
                raise _no_choice(allowed.mode)
            # The others are not shown to the model, so that it cannot call them.
            return Choice([tool for tool in tools if tool.name in names], allowed.mode)
        case other:
            raise _no_choice(other)


def _no_choice(value: Json) -> ParameterError:
    return ParameterError(
        f"the tool_choice {value!r} is not supported",
        param="tool_choice",
        reason="unsupported_parameter",
        mend='give "none", "auto", "required", a function or allowed_tools',
    )


def _no_tool(name: str) -> ParameterError:
    return ParameterError(
        f"tool_choice asks for {name!r}, and tools has none such",
        param="tool_choice",
        mend="list it in tools",
    )


def _echo(asked: Asked) -> dict[str, Json]:
    reasoning = reasoning_of(asked)
    form = format_of(asked)
    return {
        "background": bool(asked.background),
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "metadata": cast("Json", asked.metadata or {}),
        "model": asked.model,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "text": {"format": cast("Json", msgspec.to_builtins(form))},
        "tool_choice": asked.tool_choice or "auto",
        "tools": [
            {"strict": None, "description": None, **cast("dict[str, Json]", msgspec.to_builtins(tool))}
            for tool in tools_of(asked)
        ],
        "top_logprobs": 0,
        "top_p": asked.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }

"""Chat turns and tools as OpenAI writes them, into the core's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json, Message, Tool, ToolCall
from tokenweir.runtime.images import ImageLimits, data_url
from tokenweir.runtime.normalise.names import short
from tokenweir.runtime.normalise.values import Values

_ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_MESSAGE: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
# What clients send back of an earlier answer; a template writes none of it into the prompt.
_ECHOED: Final = frozenset(
    {"reasoning_content", "reasoning", "refusal", "annotations", "audio", "function_call"}
)
_MOST_TOOLS: Final = 128


def messages(values: Values, limits: ImageLimits) -> tuple[Message, ...]:
    """Return the turns of a conversation.

    Text parts of one message are joined by line breaks; a message with an image keeps its parts. The role
    ``developer`` is read as ``system``.

    Raises:
        ParameterError: there is none, or one is not as OpenAI describes it.
    """
    given = values.raw("messages")
    param = values.spelling("messages")
    if given is None or given == []:
        raise ParameterError(
            "there are no messages",
            param=param,
            reason="missing_required_parameter",
            mend="send a list of turns",
        )
    if not isinstance(given, list):
        raise values.wrong("messages", 'a list of turns, such as [{"role": "user", "content": "…"}]')
    turns = tuple(_message(f"{param}[{at}]", one, limits) for at, one in enumerate(given))
    images = sum(
        part.get("type") == "image_url"
        for turn in turns
        if isinstance(turn.content, tuple)
        for part in turn.content
    )
    if images > limits.count:
        raise ParameterError(
            f"the messages hold {images} images",
            param=param,
            reason="too_many_images",
            mend=f"send {limits.count} at most",
        )
    return turns


def has_images(turns: Sequence[Message]) -> bool:
    """Return whether any turn holds an image."""
    return any(isinstance(turn.content, tuple) for turn in turns)


def _message(param: str, value: Json, limits: ImageLimits) -> Message:
    told = _table(param, value, _MESSAGE | _ECHOED)
    role = told.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{param}.role", role, "one of " + ", ".join(map(repr, _ROLES)))
    calls = told.get("tool_calls")
    content = _content(f"{param}.content", told.get("content"), limits)
    if calls is not None and role != "assistant":
        raise _wrong(f"{param}.tool_calls", calls, "left out: only an assistant calls tools")
    if content is None and not calls:
        raise _wrong(f"{param}.content", None, "text, or content parts")
    call_id = told.get("tool_call_id")
    if role == "tool" and not isinstance(call_id, str):
        raise _wrong(f"{param}.tool_call_id", call_id, "the id of the call that this answers")
    return Message(
        role=_ROLES[role],
        content=content,
        name=_optional_text(f"{param}.name", told.get("name")),
        tool_calls=_calls(f"{param}.tool_calls", calls),
        tool_call_id=_optional_text(f"{param}.tool_call_id", call_id),
    )


def _content(param: str, value: Json, limits: ImageLimits) -> str | tuple[dict[str, Json], ...] | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(param, value, "text, or a list of content parts")
    parts = tuple(_part(f"{param}[{at}]", one, limits) for at, one in enumerate(value))
    if all(part["type"] == "text" for part in parts):
        return "\n".join(cast("str", part["text"]) for part in parts)
    return parts


def _part(param: str, value: Json, limits: ImageLimits) -> dict[str, Json]:
    told = _table(param, value, frozenset({"type", "text", "image_url", "refusal"}))
    match told.get("type"):
        case "text":
            text = told.get("text")
            if not isinstance(text, str):
                raise _wrong(f"{param}.text", text, "text")
            return {"type": "text", "text": text}
        case "image_url":
            inner = told.get("image_url")
            wrapped: Json = {"url": inner} if isinstance(inner, str) else inner
            image = _table(f"{param}.image_url", wrapped, frozenset({"url", "detail"}))
            url = image.get("url")
            if not isinstance(url, str):
                raise _wrong(f"{param}.image_url.url", url, "a data URL")
            if image.get("detail") not in (None, "auto"):
                raise _wrong(f"{param}.image_url.detail", image["detail"], "'auto'")
            data_url(url, f"{param}.image_url.url", limits)
            return {"type": "image_url", "image_url": {"url": url}}
        case other:
            raise ParameterError(
                f"a content part of type {other!r} is not supported",
                param=f"{param}.type",
                reason="unsupported_content",
                mend="send 'text' or 'image_url'",
            )


def _calls(param: str, value: Json) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong(param, value, "a list of calls")
    return tuple(_call(f"{param}[{at}]", at, one) for at, one in enumerate(value))


def _call(param: str, index: int, value: Json) -> ToolCall:
    told = _table(param, value, frozenset({"id", "type", "function", "index"}))
    function = _table(f"{param}.function", told.get("function"), frozenset({"name", "arguments"}))
    name, arguments, call_id = function.get("name"), function.get("arguments"), told.get("id")
    if not isinstance(name, str) or not name:
        raise _wrong(f"{param}.function.name", name, "the name of a tool")
    if not isinstance(arguments, str):
        raise _wrong(f"{param}.function.arguments", arguments, "JSON text")
    if not isinstance(call_id, str):
        raise _wrong(f"{param}.id", call_id, "the id of the call")
    return ToolCall(index=index, id=call_id, name=name, arguments=arguments)


def tools(values: Values) -> tuple[Tool, ...]:
    """Return the functions that the model may call. Raises ParameterError for what is none."""
    given = values.raw("tools")
    param = values.spelling("tools")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > _MOST_TOOLS:
        raise _wrong(param, given, f"a list of {_MOST_TOOLS} tools at most")
    found = tuple(_tool(f"{param}[{at}]", one) for at, one in enumerate(given))
    names = [tool.name for tool in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ParameterError(f"two tools are named {twice!r}", param=param, mend="give each its own name")
    return found


def _tool(param: str, value: Json) -> Tool:
    told = _table(param, value, frozenset({"type", "function"}))
    if told.get("type") != "function":
        raise _wrong(f"{param}.type", told.get("type"), "'function'")
    keys = frozenset({"name", "description", "parameters", "strict"})
    function = _table(f"{param}.function", told.get("function"), keys)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise _wrong(f"{param}.function.name", name, "the name of the tool")
    if parameters is not None and not isinstance(parameters, dict):
        raise _wrong(f"{param}.function.parameters", parameters, "a JSON schema")
    if function.get("strict") not in (None, False):
        raise ParameterError(
            f"'{param}.function.strict' is not supported",
            param=f"{param}.function.strict",
            reason="unsupported_parameter",
            mend="leave it out, and check the arguments; or ask for JSON with response_format",
        )
    description = _optional_text(f"{param}.function.description", function.get("description"))
    return Tool(name=name, description=description or "", parameters=parameters or {})


def tool_choice(values: Values, known: Sequence[Tool]) -> str | dict[str, Json] | None:
    """Return whether the model must call a tool. Raises ParameterError for a choice that cannot be made."""
    given = values.raw("tool_choice")
    param = values.spelling("tool_choice")
    if given is None:
        return None
    if isinstance(given, str) and given in {"none", "auto", "required"}:
        if not known and given == "required":
            raise ParameterError("a tool is required, and there are none", param=param, mend="send tools")
        return given
    told = _table(param, given, frozenset({"type", "function"}))
    function = _table(f"{param}.function", told.get("function"), frozenset({"name"}))
    name = function.get("name")
    if told.get("type") != "function" or name not in [tool.name for tool in known]:
        raise _wrong(param, given, "'none', 'auto', 'required', or a function that is among the tools")
    return {"type": "function", "function": {"name": name}}


def _table(param: str, value: Json, keys: frozenset[str]) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise _wrong(param, value, "an object")
    foreign = sorted(key for key in value.keys() - keys if value[key] is not None)
    if foreign:
        raise ParameterError(
            f"unknown parameter '{param}.{foreign[0]}'",
            param=f"{param}.{foreign[0]}",
            reason="unknown_parameter",
            mend=f"it takes {', '.join(sorted(keys - _ECHOED))}",
        )
    return value


def _optional_text(param: str, value: Json) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _wrong(param, value, "text")


def _wrong(param: str, value: Json, wanted: str) -> ParameterError:
    return ParameterError(f"{param!r} is {short(value)}", param=param, mend=f"it must be {wanted}")

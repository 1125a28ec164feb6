"""Prompts from messages: the model's own chat template, run by Jinja in a sandbox."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenweir.core.errors import InputError, ParameterError
from tokenweir.core.requests import Json, Message, Tool

_RESERVED: Final = frozenset({"messages", "tools"})


class ChatTemplate:
    """A chat template. ``tokens`` are the special tokens by name, such as ``bos_token``.

    Raises:
        InputError: the template is not Jinja; ``where`` names its file.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], where: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = _to_json
        names = {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(source, globals=names)
        except TemplateError as error:
            raise InputError(
                f"the chat template of {where} cannot be read: {error}", mend="take the model's original one"
            ) from error
        self._tokens = dict(tokens)
        # A template that knows no images takes a message's content as text.
        self._takes_parts = "image" in source

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Json]) -> str:
        """Return the prompt, ready for the answer unless ``options`` has ``add_generation_prompt`` false.

        Raises:
            ParameterError: the template refuses these messages, or fails at them.
        """
        taken = sorted(_RESERVED & options.keys())
        if taken:
            raise ParameterError(
                f"the template option {taken[0]!r} is not free",
                param="chat_template_kwargs",
                mend="messages and tools are their own fields",
            )
        values: dict[str, Json] = {"add_generation_prompt": True, **self._tokens, **options}
        try:
            return self._template.render(
                messages=[_message(message, parts=self._takes_parts) for message in messages],
                tools=[_tool(tool) for tool in tools] or None,
                documents=None,
                **values,
            )
        except TemplateError as error:
            raise ParameterError(
                f"the chat template refuses the messages: {error}",
                param="messages",
                mend="send them in the order it expects",
            ) from error
        except Exception as error:  # a template is foreign code: whatever it raises is its refusal
            raise ParameterError(
                f"the chat template fails at the messages: {type(error).__name__}: {error}",
                param="messages",
                mend="check roles, contents and tool calls",
            ) from error


class _Generation(Extension):
    """``{% generation %}`` marks what the model wrote, for training; here it is as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration, which is never changed

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes inside the tags."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _message(message: Message, *, parts: bool) -> dict[str, Json]:
    """Return a message as templates expect it: OpenAI's shape, with a tool call's arguments as an object."""
    found: dict[str, Json] = {"role": message.role, "content": _content(message.content, parts=parts)}
    if message.name is not None:
        found["name"] = message.name
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return found


def _content(content: str | tuple[dict[str, Json], ...] | None, *, parts: bool) -> Json:
    """Return a content as the template takes it; an image is no more than its place here."""
    if content is None or isinstance(content, str):
        return content or ""
    if parts:
        return [{"type": "image"} if part.get("type") == "image_url" else dict(part) for part in content]
    return "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")


def _arguments(text: str) -> Json:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return text


def _tool(tool: Tool) -> dict[str, Json]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }


def _to_json(value: Json, indent: int | None = None, **others: Json) -> str:
    # Jinja's own escapes HTML, which would put \u0026 into prompts.
    ordered = others.get("sort_keys") is True
    return json.dumps(
        value, ensure_ascii=others.get("ensure_ascii") is True, indent=indent, sort_keys=ordered
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return dt.datetime.now(tz=dt.UTC).strftime(form)

"""Which tools a request shows to the model, and whether it must call one: then guidance makes it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import GenerateRequest, Json, Tool
from tokenweir.ports.inference import Guidance, LoadedModel
from tokenweir.runtime.child.sampling import require


class Toolbox(msgspec.Struct, frozen=True, kw_only=True):
    """``shown`` go into the prompt, ``parsed`` may be called; ``forced`` as in :class:`.answer.AnswerRules`."""

    shown: tuple[Tool, ...] = ()
    parsed: tuple[Tool, ...] = ()
    forced: str = ""
    guidance: Guidance | None = None


def toolbox(request: GenerateRequest, model: LoadedModel, guidance: Guidance | None) -> Toolbox:
    """Return what becomes of the request's tools; ``guidance`` is what the answer must match anyway.

    Raises:
        ParameterError: there is no such tool, the model knows no tools, or the answer cannot be both.
    """
    tools, choice = request.tools, request.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ParameterError(
                f"tool_choice is {choice!r} and there are no tools", param="tool_choice", mend="send tools"
            )
        return Toolbox(guidance=guidance)
    if choice == "none":
        return Toolbox(guidance=guidance)
    require(model.card, "tools", "tools", param="tools")
    if guidance is not None:
        raise ParameterError(
            "an answer that must match a format cannot be a tool call as well",
            param="tools",
            mend="leave out response_format, or set tool_choice to 'none'",
        )
    if choice in (None, "auto"):
        if model.tool_calls is None or not model.format.markers().tool[0]:
            raise ParameterError(
                f"how {model.card.name!r} writes tool calls is not known",
                param="tool_choice",
                mend="set tool_choice to 'required' or to one tool",
            )
        return Toolbox(shown=tools, parsed=tools)
    candidates = tools if choice == "required" else (_named(choice, tools),)
    require(model.card, "guidance", f"tool_choice {choice!r}: it needs guidance", param="tool_choice")
    one = candidates[0] if len(candidates) == 1 else None
    schema = _parameters(one) if one is not None else _any_call(candidates)
    return Toolbox(
        shown=tools,
        parsed=candidates,
        forced="*" if one is None else one.name,
        guidance=Guidance(kind="json_schema", value=msgspec.json.encode(schema).decode()),
    )


def _named(choice: Json, tools: Sequence[Tool]) -> Tool:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    found = next((tool for tool in tools if tool.name == name), None)
    if found is None:
        names = ", ".join(tool.name for tool in tools)
        raise ParameterError(
            f"tool_choice {choice!r} names no tool of this request",
            param="tool_choice",
            mend=f"use 'none', 'auto', 'required' or a function among {names}",
        )
    return found


def _parameters(tool: Tool) -> dict[str, Json]:
    return tool.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _any_call(tools: Sequence[Tool]) -> dict[str, Json]:
    """Return the schema of a call of any of the tools. Their definitions move to the top, where ``$ref`` finds them."""
    definitions: dict[str, Json] = {}
    calls: list[Json] = []
    for tool in tools:
        schema = dict(_parameters(tool))
        own = schema.pop("$defs", None)
        for name, value in (own if isinstance(own, dict) else {}).items():
            if definitions.setdefault(name, value) != value:
                raise ParameterError(
                    f"two tools define {name!r} differently",
                    param="tools",
                    mend="rename one, or name one tool in tool_choice",
                )
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": schema},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions} if definitions else {"anyOf": calls}

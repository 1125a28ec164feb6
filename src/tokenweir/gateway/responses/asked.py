"""The body of ``POST /v1/responses``: what of it is understood, and a clear refusal of all else."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final, Literal, TypeVar

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json
from tokenweir.gateway.direct.body import fields_of

T = TypeVar("T")

_METADATA_PAIRS: Final = 16
_METADATA_KEY: Final = 64
_METADATA_VALUE: Final = 512


class Reasoning(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much a model should think. What it thought is told whole, in the content of reasoning items."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class Format(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What form the text has."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Json] | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``text``: its format."""

    format: Format | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a response, with OpenAI's names."""

    model: str
    input: str | list[dict[str, Json]]
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    tools: list[dict[str, Json]] | None = None
    tool_choice: str | dict[str, Json] | None = None
    text: dict[str, Json] | None = None
    reasoning: dict[str, Json] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


_NEUTRAL: Final[Mapping[str, tuple[Json, ...]]] = {
    "include": ([],),
    "service_tier": ("auto", "default"),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "access_programs": (),
    "background_options": (),
    "context_management": (),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
}
"""Parameters of OpenAI's that are not supported, with the values that ask for nothing."""
_INSIDE: Final[Mapping[str, Mapping[str, tuple[Json, ...]]]] = {
    "text": {"verbosity": ("medium",)},
    "reasoning": {
        "summary": (),
        "generate_summary": (),
        "context": ("auto",),
        "mode": ("standard",),
    },
    "tools": {"defer_loading": (False,), "allowed_callers": (["direct"],), "output_schema": ()},
}
_MENDS: Final[Mapping[str, str]] = {
    "include": "leave it out; reasoning is told in clear, in the content of reasoning items",
    "reasoning.summary": "leave it out; reasoning is told whole, in the content of reasoning items",
    "conversation": "give previous_response_id",
    "prompt": "send instructions and input",
    "truncation": "leave it out, and send a shorter input",
}


def read_asked(raw: bytes) -> Asked:
    """Read a body. Raises ParameterError that names what is unknown, not supported or of a wrong type."""
    fields = fields_of(raw)
    known = set(Asked.__struct_fields__)
    asked = convert(_only(fields, known, _NEUTRAL), Asked)
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise ParameterError(
            f"max_output_tokens is {asked.max_output_tokens}",
            param="max_output_tokens",
            mend="give 1 or more, or leave it out",
        )
    if asked.background and asked.store is False:
        raise ParameterError(
            "a background response is read later, and store is false",
            param="store",
            mend="leave store out, or background",
        )
    check_metadata(asked.metadata)
    return asked


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Raise ParameterError for more pairs, or longer ones, than OpenAI allows."""
    pairs = metadata or {}
    long = [key for key, value in pairs.items() if len(key) > _METADATA_KEY or len(value) > _METADATA_VALUE]
    if long or len(pairs) > _METADATA_PAIRS:
        raise ParameterError(
            f"the metadata has {len(pairs)} pairs"
            if not long
            else f"the metadata {long[0][:80]!r} is too long",
            param="metadata",
            mend=f"at most {_METADATA_PAIRS} pairs, keys of {_METADATA_KEY} and values of {_METADATA_VALUE} letters",
        )


def reasoning_of(asked: Asked) -> Reasoning:
    """Return what is asked of the reasoning. Raises ParameterError."""
    return _inner(asked.reasoning or {}, Reasoning, "reasoning", "reasoning")


def format_of(asked: Asked) -> Format:
    """Return the format of the text. Raises ParameterError."""
    found = _inner(asked.text or {}, Text, "text", "text").format or Format(type="text")
    if found.type == "json_schema" and (found.schema is None or not found.name):
        missing = "name" if not found.name else "schema"
        raise ParameterError(
            f"text.format has no {missing}",
            param=f"text.format.{missing}",
            reason="missing_required_parameter",
            mend="a json_schema format has a name and a schema",
        )
    return found


def tools_of(asked: Asked) -> list[Tool]:
    """Return the tools. Raises ParameterError for those that are no functions."""
    found: list[Tool] = []
    for position, tool in enumerate(asked.tools or ()):
        place = f"tools[{position}]"
        if tool.get("type") != "function":
            raise ParameterError(
                f"{place}.type is {tool.get('type')!r}",
                param=f"{place}.type",
                reason="unsupported_parameter",
                mend="the tools are functions; run others yourself, and send what they gave",
            )
        found.append(_inner(tool, Tool, "tools", place))
    return found


def _inner(given: Mapping[str, Json], kind: type[T], table: str, place: str) -> T:
    known: set[str] = set(getattr(kind, "__struct_fields__", ()))
    return convert(_only(given, known, _INSIDE[table], place=place, table=table), kind, place=place)


def _only(
    given: Mapping[str, Json],
    known: set[str],
    neutral: Mapping[str, tuple[Json, ...]],
    *,
    place: str = "",
    table: str = "",
) -> dict[str, Json]:
    """Return the fields that are known. Raises ParameterError for one that is not, or asks for what is not there."""
    found: dict[str, Json] = {}
    for name, value in given.items():
        if name in known:
            found[name] = value
            continue
        shown = f"{place}.{name}" if place else name
        if name not in neutral:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            raise ParameterError(
                f"unknown parameter {shown[:80]!r}",
                param=shown[:80],
                reason="unknown_parameter",
                mend=f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}",
            )
        if value is not None and value not in neutral[name]:
            raise ParameterError(
                f"{shown!r} is not supported",
                param=shown,
                reason="unsupported_parameter",
                mend=_MENDS.get(f"{table}.{name}" if table else name, "leave it out"),
            )
    return found


def convert(value: object, kind: type[T], *, place: str = "", what: str = "the request") -> T:
    """Return a decoded value as a type; ``what`` it is part of. Raises ParameterError naming the field at fault."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        fault, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").removeprefix(".")
        param = ".".join(part for part in (place, field) if part).replace(".[", "[")
        if "missing required field" in fault:
            missing = fault.rpartition("field `")[2].rstrip("`")
            param = f"{param}.{missing}" if param else missing
            raise ParameterError(
                f"{what} has no {param!r}",
                param=param,
                reason="missing_required_parameter",
                mend="name it",
            ) from error
        raise ParameterError(
            f"{param!r} cannot be used: {fault}",
            param=param or "body",
            reason="invalid_type",
            mend="give it the type that GET /openapi.json tells",
        ) from error

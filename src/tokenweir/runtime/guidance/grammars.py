"""Whether a grammar can guide: Lark's notation as llguidance reads it, less what a server cannot honour."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final, cast

import msgspec

from tokenweir.core.errors import GuidanceError
from tokenweir.core.requests import Json
from tokenweir.runtime.guidance.limits import GuidanceLimits
from tokenweir.runtime.guidance.patterns import check_pattern
from tokenweir.runtime.guidance.schemas import check_schema

_TOKEN: Final = re.compile(
    r"""
    (?P<comment>//[^\n]*|\#[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?P<pattern>(?:\\.|[^/\\\n])+)/[imslux]*)
    |(?P<directive>%\w+)
    |(?P<special><[^<>\n]*>)
    |(?P<attribute>\b(?:stop|stop_capture|max_tokens|temperature)\b(?=\s*(?:=|[\],])))
    |(?P<gbnf>::=)
    """,
    re.VERBOSE,
)
_START: Final = re.compile(r"^\s*start\b[^:\n]*:", re.MULTILINE)
_DIRECTIVES: Final = frozenset({"%json", "%regex", "%ignore", "%import", "%declare"})
_WHITE: Final = re.compile(r"\s*")


def check_grammar(text: str, limits: GuidanceLimits) -> None:
    """Check that a grammar holds nothing that would be passed over; whether it is one shows when it is compiled.

    Raises:
        GuidanceError: it is too large, has no rule ``start``, or asks for special tokens, options, temperatures or
            stops, or a schema in it cannot be obeyed.
    """
    size = len(text.encode(errors="replace"))
    if size > limits.grammar_bytes:
        raise GuidanceError(
            f"the grammar has {size} bytes, more than {limits.grammar_bytes}", mend="write a shorter one"
        )
    for match in _tokens(text):
        match match.lastgroup:
            case "gbnf":
                raise GuidanceError(
                    "the grammar is in GBNF notation ('::=')",
                    mend='write it in Lark\'s: \'start: "a" | "b"\'',
                )
            case "special":
                raise GuidanceError(
                    f"the grammar asks for the special token {match[0]}, which is no text",
                    mend="leave it out",
                )
            case "attribute":
                raise GuidanceError(
                    f"the grammar sets {match[0]!r}, which is not supported", mend="leave it out"
                )
            case "directive" if match[0] not in _DIRECTIVES:
                raise GuidanceError(
                    f"the grammar uses {match[0]}, which is not supported", mend="leave it out"
                )
            case "regex":
                check_pattern(match["pattern"], limits, where="an expression of the grammar")
            case _:
                pass
    if _START.search(text) is None:
        raise GuidanceError("the grammar has no rule named start", mend="begin with 'start: ...'")
    _replace_schemas(text, lambda schema: (check_schema(_text(schema), limits), schema)[1])


def compact_grammar(text: str, compact: Callable[[dict[str, Json]], dict[str, Json]]) -> str:
    """Return a grammar with ``compact`` applied to each JSON schema in it. Raises GuidanceError for what is no JSON."""
    return _replace_schemas(text, compact)


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """Yield what matters in a grammar, JSON values left out."""
    place = 0
    while (match := _TOKEN.search(text, place)) is not None:
        yield match
        place = match.end()
        if match[0] in {"%json", "%regex"}:
            place = _json(text, place)[1]


def _replace_schemas(text: str, change: Callable[[dict[str, Json]], dict[str, Json]]) -> str:
    parts: list[str] = []
    done = 0
    for match in _tokens(text):
        if match[0] == "%json":
            schema, end = _json(text, match.end())
            parts += [text[done : match.end()], " ", _text(change(schema))]
            done = end
    return "".join([*parts, text[done:]])


def _json(text: str, place: int) -> tuple[dict[str, Json], int]:
    """Return the JSON object that begins at ``place``, and where it ends."""
    white = _WHITE.match(text, place)
    begin = white.end() if white is not None else place
    try:
        value, end = cast("tuple[Json, int]", json.JSONDecoder().raw_decode(text, begin))
    except (ValueError, RecursionError) as error:
        raise GuidanceError(
            f"the grammar holds something that is no JSON: {error}", mend="mend it"
        ) from error
    if not isinstance(value, dict):
        raise GuidanceError(
            f"the grammar holds {value!r} where a JSON object belongs", mend="write an object"
        )
    return value, end


def _text(schema: Json) -> str:
    return msgspec.json.encode(schema).decode()

"""Guidance as a grammar for llguidance: through Outlines' terms where Outlines is installed, else directly."""

from __future__ import annotations

import functools
import importlib
import re
from typing import Final, Protocol, cast

import msgspec
from llguidance import LLMatcher

from tokenweir.core.errors import GuidanceError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.guidance.check import read_choices
from tokenweir.runtime.guidance.grammars import compact_grammar
from tokenweir.runtime.guidance.limits import LIMITS
from tokenweir.runtime.guidance.schemas import read_schema

_OUTLINES: Final = "tokenweir.runtime.guidance.outlines_terms"


class GrammarSource(Protocol):
    """Writes the grammar of guidance that was made compact."""

    def grammar(self, guidance: Guidance) -> str:
        """Return the grammar. Raises GuidanceError for what is none."""
        ...


class _Direct:
    """llguidance's own notations."""

    def grammar(self, guidance: Guidance) -> str:
        """Return the grammar. Raises GuidanceError for what is none."""
        match guidance.kind:
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(guidance.value)
            case "regex":
                return LLMatcher.grammar_from_regex(f"({guidance.value})")
            case "grammar":
                return LLMatcher.grammar_from_lark(guidance.value)
            case "choice":
                return LLMatcher.grammar_from_regex(
                    f"({'|'.join(map(re.escape, read_choices(guidance.value)))})"
                )


@functools.cache
def grammar_source() -> GrammarSource:
    """Return what writes grammars. The first call imports Outlines where it is installed, which takes seconds."""
    try:
        module = importlib.import_module(_OUTLINES)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tokenweir."):
            raise
        return _Direct()
    return cast("GrammarSource", module.OutlinesSource())


def compact(guidance: Guidance) -> Guidance:
    """Return guidance whose JSON is written without white space: models fill flexible space until they are cut off.

    Raises:
        GuidanceError: what should be JSON is none.
    """
    match guidance.kind:
        case "json_schema":
            schema = _compact_schema(read_schema(guidance.value, LIMITS))
            return Guidance(kind="json_schema", value=msgspec.json.encode(schema).decode())
        case "grammar":
            return Guidance(kind="grammar", value=compact_grammar(guidance.value, _compact_schema))
        case "regex" | "choice":
            return guidance


def _compact_schema(schema: dict[str, Json]) -> dict[str, Json]:
    if "x-guidance" in schema:
        raise GuidanceError("the keyword 'x-guidance' is not supported", mend="leave it out")
    return {"x-guidance": {"whitespace_flexible": False}, **schema}

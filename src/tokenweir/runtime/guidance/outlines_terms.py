"""Outlines' output types on both sides: what its users write becomes guidance, and guidance becomes its terms.

Behind its interface stands llguidance, with tokens of our own: Outlines' logits processors keep the state of a whole
batch, so only the grammar is taken from them, and each sequence has a matcher to itself (``masks``).
"""

from __future__ import annotations

from typing import Any, cast

import jsonschema
import llguidance
import msgspec
from outlines.backends.llguidance import LLGuidanceBackend, LLGuidanceLogitsProcessor
from outlines.types.dsl import CFG, Choice, JsonSchema, Regex, Term, python_types_to_terms, to_regex

from tokenweir.core.errors import GuidanceError
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.guidance.check import read_choices


def guidance_of(output_type: object) -> Guidance:
    """Return the guidance that an Outlines output type asks for.

    Takes what Outlines takes: its terms, pydantic models, data classes, typed dictionaries, ``Literal``, enums, ``int``
    and the like.

    Raises:
        GuidanceError: it is no output type.
    """
    try:
        term = python_types_to_terms(output_type)
        match term:
            case JsonSchema():
                return Guidance(kind="json_schema", value=term.schema)
            case CFG():
                return Guidance(kind="grammar", value=term.definition)
            case Regex():
                return Guidance(kind="regex", value=term.pattern)
            case Choice() if all(isinstance(item, str) for item in cast("list[object]", term.items)):
                return Guidance(kind="choice", value=msgspec.json.encode(term.items).decode())
            case _:
                return Guidance(kind="regex", value=to_regex(term))
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise GuidanceError(
            f"{output_type!r} is no output type: {error}", mend="use a type that Outlines knows"
        ) from error


def term_of(guidance: Guidance) -> Term:
    """Return guidance as an Outlines term. Raises GuidanceError for a malformed JSON schema or choice."""
    match guidance.kind:
        case "json_schema":
            try:
                return JsonSchema(guidance.value)
            except jsonschema.SchemaError as error:
                place = "/".join(["#", *map(str, error.absolute_path)])
                raise GuidanceError(
                    f"the JSON schema is malformed at {place}: {error.message}", mend="mend it"
                ) from error
        case "regex":
            return Regex(guidance.value)
        case "grammar":
            return CFG(guidance.value)
        case "choice":
            return Choice(read_choices(guidance.value))


class OutlinesSource(LLGuidanceBackend):
    """Outlines' llguidance backend without a model of Outlines': it writes grammars, and is given no tokens."""

    def __init__(self) -> None:
        self.llg = llguidance
        self.tensor_library_name = "numpy"
        self.llg_tokenizer = cast("Any", None)

    def grammar(self, guidance: Guidance) -> str:
        """Return the grammar. Raises GuidanceError for what is none."""
        term = term_of(guidance)
        try:
            processor = self._processor(term)
        except ValueError as error:
            raise GuidanceError(f"the {guidance.kind} is malformed: {error}", mend="mend it") from error
        return processor.grammar

    def _processor(self, term: Term) -> LLGuidanceLogitsProcessor:
        match term:
            case CFG():
                return self.get_cfg_logits_processor(term.definition)
            case JsonSchema():
                return self.get_json_schema_logits_processor(term.schema)
            case _:
                return self.get_regex_logits_processor(to_regex(term))

"""What the server checks of guidance before anything is sent to the engine: shape and size, never by compiling."""

from __future__ import annotations

import msgspec

from tokenweir.core.errors import GuidanceError
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.guidance.grammars import check_grammar
from tokenweir.runtime.guidance.limits import LIMITS, GuidanceLimits
from tokenweir.runtime.guidance.patterns import check_pattern
from tokenweir.runtime.guidance.schemas import check_schema


def check(guidance: Guidance, limits: GuidanceLimits = LIMITS) -> None:
    """Check that guidance is within bounds and asks for nothing that would be passed over.

    Raises:
        GuidanceError: it is not; the message names the keyword or construct, where it stands, and what to do.
    """
    match guidance.kind:
        case "json_schema":
            check_schema(guidance.value, limits)
        case "regex":
            check_pattern(guidance.value, limits, where="the regular expression")
        case "grammar":
            check_grammar(guidance.value, limits)
        case "choice":
            read_choices(guidance.value, limits)


def read_choices(text: str, limits: GuidanceLimits = LIMITS) -> list[str]:
    """Return the texts of a choice.

    Raises:
        GuidanceError: it is no list of texts, is empty, too long, or names a text twice.
    """
    size = len(text.encode(errors="replace"))
    if size > limits.choices_bytes:
        raise GuidanceError(
            f"the choices have {size} bytes, more than {limits.choices_bytes}", mend="list fewer"
        )
    try:
        choices = msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise GuidanceError(
            f"the choices are no JSON list of texts: {error}", mend='send ["a", "b"]'
        ) from error
    if not choices or len(choices) > limits.choices:
        raise GuidanceError(f"there are {len(choices)} choices", mend=f"list 1 to {limits.choices}")
    if "" in choices:
        raise GuidanceError("a choice is empty", mend="list texts that are not")
    if len(set(choices)) != len(choices):
        twice = next(text for text in choices if choices.count(text) > 1)
        raise GuidanceError(f"the choice {twice!r} is listed twice", mend="list each text once")
    return choices

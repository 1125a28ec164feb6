"""Whether a regular expression can guide: which of its constructs cannot, and how large it is written out."""

from __future__ import annotations

import re
from typing import Final

from tokenweir.core.errors import GuidanceError
from tokenweir.runtime.guidance.limits import GuidanceLimits

_TOKEN: Final = re.compile(
    r"""
    (?P<look>\(\?<?[=!])
    |(?P<atomic>\(\?>)
    |(?P<condition>\(\?\()
    |(?P<named>\(\?P=)
    |(?P<open>\((?:\?(?:P?<\w+>|[a-zA-Z-]*[:)]))?)
    |(?P<close>\))
    |(?P<backreference>\\[1-9]|\\k[<'{])
    |(?P<boundary>\\[bB])
    |(?P<escape>\\(?:[pP](?:\{[^}]*\}|.)|[xuU](?:\{[^}]*\}|[0-9a-fA-F]+)|.|$))
    |(?P<class>\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\])
    |(?P<count>\{(?P<least>\d+)(?P<comma>,(?P<most>\d*))?\}[?+]?)
    |(?P<repeat>[*+?][?+]?)
    |(?P<or>\|)
    |(?P<character>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_REFUSED: Final = {
    "look": "looks ahead or behind",
    "atomic": "has an atomic group",
    "condition": "has a condition",
    "named": "refers back to a group",
    "backreference": "refers back to a group",
    "boundary": r"asks for a word boundary (\b)",
}


def check_pattern(pattern: str, limits: GuidanceLimits, *, where: str) -> None:
    """Check that a regular expression is small and uses nothing that cannot be decided while writing.

    ``where`` names it in the message. Whether it is well-formed shows when it is compiled.

    Raises:
        GuidanceError: it is too large, or looks around, refers back or asks for word boundaries.
    """
    size = len(pattern.encode(errors="replace"))
    if size > limits.pattern_bytes:
        raise GuidanceError(
            f"{where} has {size} bytes, more than {limits.pattern_bytes}", mend="write a shorter expression"
        )
    for match in _TOKEN.finditer(pattern):
        refused = _REFUSED.get(match.lastgroup or "")
        if refused is not None:
            raise GuidanceError(
                f"{where} {refused} ({match[0]!r} at {match.start()}), which is not supported",
                mend="write it without",
            )
    unrolled = _unrolled(pattern)
    if unrolled > limits.unrolled:
        raise GuidanceError(
            f"{where} has {unrolled} parts once its repetitions are written out, more than {limits.unrolled}",
            mend="repeat less, or without a bound",
        )


def _unrolled(pattern: str) -> int:
    """Return how many characters, classes and the like an expression has with counted repetitions written out."""
    sizes = [0]
    last = 0
    for match in _TOKEN.finditer(pattern):
        match match.lastgroup:
            case "open":
                sizes.append(0)
                last = 0
                if match[0].startswith("(?") and match[0].endswith(")"):
                    sizes.pop()
            case "close":
                last = sizes.pop() if len(sizes) > 1 else 0
                sizes[-1] += last
            case "count":
                times = max(int(match["most"] or 0), int(match["least"]), 1)
                sizes[-1] += last * (times - 1)
                last *= times
            case "repeat" | "or":
                pass
            case _:
                last = 1
                sizes[-1] += 1
    return sum(sizes)

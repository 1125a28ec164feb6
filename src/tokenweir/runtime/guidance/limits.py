"""How large and how deep guidance may be: a schema is a program that the caller has us compile."""

from __future__ import annotations

from typing import Final

import msgspec


class GuidanceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what may guide an answer; beyond them it is refused before anything is compiled.

    ``depth`` counts nested JSON values. ``multiple`` bounds the least common multiple of all ``multipleOf`` of a
    schema, as whole numbers of their last digit: an automaton has that many states. ``unrolled`` bounds the size of
    an expression once its counted repetitions are written out.
    """

    schema_bytes: int = 262_144
    depth: int = 64
    subschemas: int = 4096
    properties: int = 500
    branches: int = 256
    enum_values: int = 4096
    multiple: int = 10_000
    pattern_bytes: int = 8192
    unrolled: int = 20_000
    grammar_bytes: int = 65_536
    choices: int = 1024
    choices_bytes: int = 65_536


LIMITS: Final = GuidanceLimits()
"""The bounds in use."""

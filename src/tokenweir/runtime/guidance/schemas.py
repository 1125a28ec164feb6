"""Which JSON schemas can guide: the keywords that are obeyed, and the shapes that are not, each refused by name.

What is obeyed is what llguidance compiles and holds to. It overlooks what it does not know, so unknown keywords are
refused here; and what it knows but cannot hold to in every answer is refused as well.

Source: JSON Schema 2020-12; llguidance's documentation of its JSON schemas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final, cast
from urllib.parse import unquote

import msgspec

from tokenweir.core.canonical import MAX_INTEGER
from tokenweir.core.errors import GuidanceError
from tokenweir.core.requests import Json
from tokenweir.runtime.guidance.limits import GuidanceLimits
from tokenweir.runtime.guidance.patterns import check_pattern

Schema = dict[str, Json]

_ONE: Final = frozenset({"items", "additionalItems", "additionalProperties"})
_MANY: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_PLAIN: Final = frozenset(
    {
        "$ref", "const", "enum", "type", "minItems", "maxItems", "required", "minProperties", "maxProperties",
        "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
        "multipleOf",
    }
)  # fmt: skip
_ANNOTATIONS: Final = frozenset(
    {
        "$anchor", "$comment", "$schema", "title", "description", "default", "example", "examples", "deprecated",
        "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator",
    }
)  # fmt: skip
KEYWORDS: Final = _ONE | _MANY | _NAMED | _PLAIN
"""The keywords that are obeyed."""

FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""The values of ``format`` that are obeyed."""

_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MEND: Final[Mapping[str, str]] = {
    "nullable": 'write "type": [..., "null"]',
    "not": "say what is allowed instead",
    "if": "write the cases as anyOf",
    "then": "write the cases as anyOf",
    "else": "write the cases as anyOf",
    "$id": "state $id at the top only",
    "uniqueItems": "leave it out and check the answer",
    "x-guidance": "leave it out",
}
_DEFAULT_MEND: Final = "leave it out; docs/runtime/structured-output.md lists what is supported"


def read_schema(text: str, limits: GuidanceLimits) -> Schema:
    """Return the schema in a JSON text, ``true`` as the empty one.

    Raises:
        GuidanceError: it is too large or too deep, or no schema.
    """
    size = len(text.encode(errors="replace"))
    if size > limits.schema_bytes:
        raise GuidanceError(
            f"the JSON schema has {size} bytes, more than {limits.schema_bytes}", mend="send a smaller one"
        )
    try:
        schema = cast("Json", msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise GuidanceError(f"the JSON schema is no JSON: {error}", mend="send a JSON object") from error
    depth = _depth(schema)
    if depth > limits.depth:
        raise GuidanceError(
            f"the JSON schema is nested {depth} deep, more than {limits.depth}",
            mend="name its parts in $defs and refer to them",
        )
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise GuidanceError(f"a JSON schema is an object, not {_short(schema)}", mend="send a JSON object")
    return schema


def check_schema(text: str, limits: GuidanceLimits) -> None:
    """Check that a JSON schema can be obeyed in full, as far as its shape tells.

    Raises:
        GuidanceError: it is too large, or holds something that is not supported; the message names it and where.
    """
    root = read_schema(text, limits)
    walk = _Walk(limits)
    walk.visit(root, "#")
    walk.finish()


class _Walk:
    """One pass over a schema and all its subschemas."""

    def __init__(self, limits: GuidanceLimits) -> None:
        self._limits = limits
        self._places: set[str] = set()
        self._anchors: set[str] = set()
        self._refs: list[tuple[str, str]] = []
        self._values = 0
        self._multiple = 1

    def visit(self, schema: Json, place: str) -> None:
        """Check a subschema and those in it; ``place`` is its JSON pointer."""
        self._places.add(place)
        if len(self._places) > self._limits.subschemas:
            raise GuidanceError(
                f"the JSON schema has more than {self._limits.subschemas} subschemas",
                mend="send a smaller one",
            )
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise GuidanceError(f"{place} is no schema but {_short(schema)}", mend="write an object there")
        self._keywords(schema, place)
        self._sizes(schema, place)
        self._values_of(schema, place)
        self._numbers(schema, place)
        for inner, where in _subschemas(schema, place):
            self.visit(inner, where)

    def finish(self) -> None:
        """Check what only the whole schema tells: whether references lead anywhere."""
        for ref, place in self._refs:
            target = unquote(ref)
            if target not in self._places and target not in self._anchors:
                raise GuidanceError(
                    f"{place} refers to {ref!r}, which is no schema within this one",
                    mend="put it into $defs, and refer to '#/$defs/NAME'; nothing is fetched",
                )

    def _keywords(self, schema: Schema, place: str) -> None:
        for key, value in schema.items():
            if key == "$id" and place == "#":
                continue
            extension = key.startswith("x-") and key != "x-guidance"
            if key not in KEYWORDS and key not in _ANNOTATIONS and not extension:
                raise GuidanceError(
                    f"the keyword {key!r} at {place} is not supported", mend=_MEND.get(key, _DEFAULT_MEND)
                )
            if key == "$anchor" and isinstance(value, str):
                self._anchors.add(f"#{value}")
        ref = schema.get("$ref")
        if ref is not None:
            if not isinstance(ref, str):
                raise GuidanceError(f"$ref at {place} is {_short(ref)}", mend="write a text")
            self._refs.append((ref, place))

    def _sizes(self, schema: Schema, place: str) -> None:
        for key in _MANY | _NAMED:
            value = schema.get(key)
            most = self._limits.properties if key in _NAMED else self._limits.branches
            if isinstance(value, dict | list) and len(value) > most:
                raise GuidanceError(
                    f"{key} at {place} has {len(value)} entries, more than {most}",
                    mend="send a smaller schema",
                )
        least, required = schema.get("minProperties"), schema.get("required")
        certain = len({str(name) for name in required}) if isinstance(required, list) else 0
        if isinstance(least, int) and least > certain + 1:
            # Further keys are free, so the same one could be written twice.
            raise GuidanceError(
                f"minProperties {least} at {place} is not supported beside {certain} required properties",
                mend="name the properties in required",
            )
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            check_pattern(pattern, self._limits, where=f"the pattern at {place}")
        named = schema.get("patternProperties")
        for name in named if isinstance(named, dict) else ():
            check_pattern(name, self._limits, where=f"the pattern {name!r} at {place}/patternProperties")
        kind = schema.get("format")
        if kind is not None and kind not in FORMATS:
            raise GuidanceError(
                f"the format {kind!r} at {place} is not supported",
                mend=f"use one of {', '.join(sorted(FORMATS))}, or a pattern",
            )

    def _values_of(self, schema: Schema, place: str) -> None:
        listed = schema.get("enum")
        values = [*listed] if isinstance(listed, list) else []
        if "const" in schema:
            values.append(schema["const"])
        self._values += len(values)
        if self._values > self._limits.enum_values:
            raise GuidanceError(
                f"the JSON schema lists more than {self._limits.enum_values} values", mend="list fewer"
            )
        for value in values:
            _check_integers(value, place)

    def _numbers(self, schema: Schema, place: str) -> None:
        for key in _BOUNDS:
            value = schema.get(key)
            if isinstance(value, bool):
                raise GuidanceError(
                    f"{key} at {place} is {_short(value)}", mend="write the bound as a number"
                )
            _check_integers(value, place)
        step = schema.get("multipleOf")
        if step is None:
            return
        if isinstance(step, bool) or not isinstance(step, int | float) or step <= 0:
            raise GuidanceError(f"multipleOf at {place} is {_short(step)}", mend="write a number above 0")
        digits = Decimal(repr(step)).normalize().as_tuple().digits
        self._multiple = math.lcm(self._multiple, int("".join(map(str, digits))) * _tens(step))
        if self._multiple > self._limits.multiple:
            raise GuidanceError(
                f"multipleOf {step} at {place} is too fine: with the others it makes {self._multiple} cases, "
                f"more than {self._limits.multiple}",
                mend="use a smaller or rounder number",
            )


def _tens(step: float) -> int:
    """Return the power of ten that :meth:`Decimal.normalize` took out of a whole number."""
    exponent = Decimal(repr(step)).normalize().as_tuple().exponent
    return 10 ** min(exponent, 18) if isinstance(exponent, int) and exponent > 0 else 1


def _subschemas(schema: Schema, place: str) -> Iterator[tuple[Json, str]]:
    for key, value in schema.items():
        where = f"{place}/{key}"
        if key in _NAMED:
            if not isinstance(value, dict):
                raise GuidanceError(f"{where} is {_short(value)}", mend="write an object of schemas")
            for name, inner in value.items():
                yield inner, f"{where}/{name.replace('~', '~0').replace('/', '~1')}"
        elif key in _MANY or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list) or not value:
                raise GuidanceError(f"{where} is {_short(value)}", mend="write a list of schemas")
            for number, inner in enumerate(value):
                yield inner, f"{where}/{number}"
        elif key in _ONE:
            yield value, where


def _check_integers(value: Json, place: str) -> None:
    """Refuse whole numbers that would be rounded. Raises GuidanceError."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise GuidanceError(
            f"the number {value} at {place} is beyond ±(2^53 - 1), where numbers are rounded",
            mend="use a smaller one, or text",
        )
    if isinstance(value, list):
        for inner in value:
            _check_integers(inner, place)
    elif isinstance(value, dict):
        for inner in value.values():
            _check_integers(inner, place)


def _depth(value: Json) -> int:
    """Return how many containers lie within each other, without recursion."""
    deepest = 0
    pending: list[tuple[Json, int]] = [(value, 1)]
    while pending:
        one, depth = pending.pop()
        if isinstance(one, dict | list):
            deepest = max(deepest, depth)
        if isinstance(one, dict):
            pending += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            pending += [(inner, depth + 1) for inner in one]
    return deepest


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - enough to recognise it

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import GuidanceError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import Guidance, GuidanceKind
from tokenweir.runtime.guidance.check import check
from tokenweir.runtime.guidance.limits import GuidanceLimits
from tokenweir.runtime.guidance.masks import GuideCompiler
from tokenweir.runtime.guidance.schemas import FORMATS, KEYWORDS


def schema(value: Json) -> Guidance:
    return Guidance(kind="json_schema", value=json.dumps(value))


def nested(levels: int) -> Json:
    value: Json = {"type": "null"}
    for _ in range(levels):
        value = {"type": "array", "items": value}
    return value


UNSUPPORTED: dict[str, Json] = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
    "contains": {"type": "array", "contains": {"type": "null"}},
    "minContains": {"type": "array", "minContains": 2},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "a"}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {}}},
    "dependencies": {"dependencies": {"a": ["b"]}},
    "unevaluatedProperties": {"unevaluatedProperties": False},
    "unevaluatedItems": {"unevaluatedItems": False},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "$recursiveRef": {"$recursiveRef": "#"},
    "nullable": {"type": "string", "nullable": True},
    "maxlength": {"type": "string", "maxlength": 3},
    "components": {"components": {"schemas": {}}},
    "x-guidance": {"x-guidance": {"lenient": True}, "type": "array"},
}


@pytest.mark.parametrize("keyword", UNSUPPORTED)
@pytest.mark.parametrize("deep", [False, True])
def test_an_unsupported_keyword_is_named_with_its_place(keyword: str, deep: bool) -> None:  # noqa: FBT001
    value = UNSUPPORTED[keyword]
    wrapped: Json = {"type": "object", "properties": {"a/b": {"items": value}}} if deep else value
    place = "#/properties/a~1b/items" if deep else "#"
    with pytest.raises(GuidanceError) as caught:
        check(schema(wrapped))
    assert f"the keyword '{keyword}' at {place} is not supported" in caught.value.message
    assert caught.value.mend


def test_a_property_may_be_called_like_a_keyword() -> None:
    check(schema({"type": "object", "properties": {"not": {"type": "null"}, "$ref": {"const": "if"}}}))
    check(schema({"enum": [{"not": 1, "minimum": True}], "default": {"uniqueItems": 1}}))
    check(schema({"$defs": {"if": {"type": "null"}}, "$ref": "#/$defs/if"}))


def test_annotations_are_let_through() -> None:
    check(
        schema(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$id": "urn:answer",
                "$comment": "why",
                "title": "T",
                "description": "d",
                "default": 1,
                "examples": [2],
                "deprecated": True,
                "x-order": 3,
                "discriminator": {"propertyName": "kind"},
                "type": "integer",
            }
        )
    )


def test_true_is_a_schema() -> None:
    check(Guidance(kind="json_schema", value="true"))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (False, "a JSON schema is an object, not False"),
        ([], "a JSON schema is an object"),
        ({"items": 3}, "#/items is no schema but 3"),
        ({"properties": []}, "#/properties is"),
        ({"anyOf": []}, "#/anyOf is"),
        ({"anyOf": {}}, "#/anyOf is"),
        ({"allOf": [1]}, "#/allOf/0 is no schema"),
        ({"$ref": 1}, "is 1"),
        ({"$ref": "#/$defs/none"}, "'#/\\$defs/none', which is no schema within this one"),
        ({"$ref": "https://example.com/s"}, "nothing is fetched"),
        ({"$ref": "#/default", "default": {}}, "no schema within"),
        ({"properties": {"a": {"$id": "urn:x"}}}, r"'\$id' at #/properties/a .* at the top only"),
        ({"format": "idn-email"}, "the format 'idn-email' at # .*date-time"),
        ({"const": 2**53}, "beyond"),
        ({"enum": [{"a": [-(2**60)]}]}, "beyond"),
        ({"minimum": 2**60}, "beyond"),
        (
            {"minimum": 1, "exclusiveMinimum": True},
            "exclusiveMinimum at # is True; write the bound as a number",
        ),
        ({"multipleOf": 0}, "above 0"),
        ({"multipleOf": 10_007}, "too fine"),
        ({"items": [{"multipleOf": 997}, {"multipleOf": 991}]}, "988027 cases"),
        ({"multipleOf": 1_000_000}, "too fine"),
        ({"minProperties": 2}, "minProperties 2 at # is not supported beside 0 required"),
        ({"pattern": "(?=a)b"}, "the pattern at # looks ahead"),
        ({"patternProperties": {r"(a)\1": {}}}, "refers back"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused(value: Json, what: str) -> None:
    with pytest.raises(GuidanceError, match=what):
        check(schema(value))


ALIKE: list[Json] = [
    {"multipleOf": 0.01},
    {"multipleOf": 2.5},
    {"multipleOf": 1000},
    {"minProperties": 2, "required": ["a"]},
    {"$ref": "#"},
    {"$ref": "#/$defs/a%20b", "$defs": {"a b": {}}},
    {"$ref": "#name", "$defs": {"a": {"$anchor": "name"}}},
    {"items": [{}, {}], "additionalItems": False},
]


@pytest.mark.parametrize("value", ALIKE)
def test_what_looks_alike_and_can_be_held_to_passes(value: Json) -> None:
    check(schema(value))


BEYOND: list[tuple[Json, str]] = [
    (nested(64), "nested 65 deep, more than 64"),
    ({"description": "x" * 262_144}, "bytes, more than 262144"),
    ({"properties": {f"p{n}": {} for n in range(501)}}, "properties at # has 501 entries, more than 500"),
    ({"anyOf": [{"const": n} for n in range(257)]}, "anyOf at # has 257 entries"),
    ({"enum": list(range(4097))}, "more than 4096 values"),
    (
        {"properties": {f"p{n}": {"properties": {f"q{m}": {} for m in range(400)}} for n in range(11)}},
        "more than 4096 subschemas",
    ),
    ({"pattern": "(a{200}){200}"}, "40000 parts"),
]


@pytest.mark.parametrize(("value", "what"), BEYOND)
def test_a_schema_beyond_the_limits_is_refused(value: Json, what: str) -> None:
    with pytest.raises(GuidanceError, match=what):
        check(schema(value))


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[" * 100_000, '{"const": "\\ud800"}', '"x'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(GuidanceError, match=r"the JSON schema|a JSON schema"):
        check(Guidance(kind="json_schema", value=text))


def test_limits_can_be_lowered() -> None:
    with pytest.raises(GuidanceError, match="nested 3 deep, more than 2"):
        check(schema(nested(2)), GuidanceLimits(depth=2))


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        ("regex", "a(?!b)", r"looks ahead or behind \('\(\?!' at 1\)"),
        ("regex", "(?<=a)b", "looks ahead or behind"),
        ("regex", r"(a)\1", "refers back"),
        ("regex", "(?P<x>a)(?P=x)", "refers back"),
        ("regex", r"\bword", "word boundary"),
        ("regex", "(?>a)", "atomic"),
        ("regex", "(?(1)a|b)", "condition"),
        ("regex", "x" * 8193, "8193 bytes"),
        ("regex", "(a{1000}){1000}", "1000000 parts"),
        ("regex", "(((a{99}){99}){99}){0,99}", "parts"),
        ("regex", "a{30000,}", "30000 parts"),
        ("choice", "yes", "no JSON list"),
        ("choice", "[]", "0 choices"),
        ("choice", '["a", 1]', "no JSON list"),
        ("choice", '["a", ""]', "empty"),
        ("choice", '["a", "b", "a"]', "'a' is listed twice"),
        ("choice", json.dumps([str(n) for n in range(1025)]), "1025 choices"),
        ("choice", json.dumps(["x" * 70_000]), "bytes"),
        ("grammar", "", "no rule named start"),
        ("grammar", 'begin: "a"', "no rule named start"),
        ("grammar", '// start: "a"\nrule: "b"', "no rule named start"),
        ("grammar", 'root ::= "a"', "GBNF"),
        ("grammar", 'start: <|user|> "a"', r"special token <\|user\|>"),
        ("grammar", "start: <[12]>", "special token"),
        ("grammar", 'start: a\na[max_tokens=3]: "x"', "sets 'max_tokens'"),
        ("grammar", 'start: a\na[stop="z"]: /x*/', "sets 'stop'"),
        ("grammar", "start[temperature=0.3]: /x/", "sets 'temperature'"),
        ("grammar", '%llguidance {"no_forcing": true}\nstart: "a"', "uses %llguidance"),
        ("grammar", "start: /a(?=b)/", "looks ahead"),
        ("grammar", 'start: %json {"uniqueItems": true}', "uniqueItems"),
        ("grammar", 'start: %json {"nullable": true}', "nullable"),
        ("grammar", "start: %json {", "no JSON"),
        ("grammar", "start: %json [1]", "where a JSON object belongs"),
        ("grammar", 'start: "' + "x" * 65_536 + '"', "bytes, more than 65536"),
    ],
)
def test_other_guidance_that_cannot_be_held_to_is_refused(kind: GuidanceKind, value: str, what: str) -> None:
    with pytest.raises(GuidanceError, match=what):
        check(Guidance(kind=kind, value=value))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", r"[(?=]\\bx\(\?=a"),
        ("regex", "(?i)(?P<name>a)(?:b|c){2,5}?\\p{L}"),
        ("regex", "[^]]{3}"),
        ("grammar", 'start: "stop=1" "<x>" "::=" // max_tokens=3\n # %llguidance\n'),
        ("grammar", 'start: a\na: /stop=<x>[/]?/ | %json {"const": "temperature="}'),
        ("grammar", '%ignore / +/\n%import common.INT\nstart: INT "x"~2..3'),
        ("grammar", "start[lazy]: /x+/"),
    ],
)
def test_what_only_looks_like_it_passes(kind: GuidanceKind, value: str) -> None:
    check(Guidance(kind=kind, value=value))


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_no_expression_upsets_the_check(text: str) -> None:
    for kind in ("regex", "grammar", "choice", "json_schema"):
        with contextlib.suppress(GuidanceError):
            check(Guidance(kind=kind, value=text))


SAMPLES: dict[str, Json] = {
    "items": {"type": "array", "items": {"type": "null"}},
    "additionalItems": {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
    "additionalProperties": {"type": "object", "additionalProperties": {"type": "null"}},
    "anyOf": {"anyOf": [{"type": "null"}]},
    "oneOf": {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
    "allOf": {"allOf": [{"type": "null"}]},
    "prefixItems": {"type": "array", "prefixItems": [{"type": "null"}]},
    "properties": {"type": "object", "properties": {"a": {"type": "null"}}},
    "patternProperties": {"type": "object", "patternProperties": {"^a$": {"type": "null"}}},
    "$defs": {"$defs": {"a": {"type": "null"}}, "$ref": "#/$defs/a"},
    "definitions": {"definitions": {"a": {"type": "null"}}, "$ref": "#/definitions/a"},
    "$ref": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}},
    "const": {"const": 1},
    "enum": {"enum": [1, "a"]},
    "type": {"type": ["null", "integer"]},
    "minItems": {"type": "array", "minItems": 1},
    "maxItems": {"type": "array", "maxItems": 1},
    "required": {"type": "object", "required": ["a"]},
    "minProperties": {"type": "object", "minProperties": 1},
    "maxProperties": {"type": "object", "maxProperties": 1},
    "minLength": {"type": "string", "minLength": 1},
    "maxLength": {"type": "string", "maxLength": 1},
    "pattern": {"type": "string", "pattern": "a"},
    "format": {"type": "string", "format": "date"},
    "minimum": {"type": "integer", "minimum": 1},
    "maximum": {"type": "integer", "maximum": 1},
    "exclusiveMinimum": {"type": "integer", "exclusiveMinimum": 1},
    "exclusiveMaximum": {"type": "integer", "exclusiveMaximum": 1},
    "multipleOf": {"type": "integer", "multipleOf": 5},
}


@pytest.mark.parametrize("keyword", sorted(KEYWORDS))
def test_every_keyword_that_passes_also_compiles(compiler: GuideCompiler, keyword: str) -> None:
    assert keyword in SAMPLES[keyword]  # pyright: ignore[reportOperatorIssue]
    check(schema(SAMPLES[keyword]))
    compiler.compile(schema(SAMPLES[keyword]))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_that_passes_also_compiles(compiler: GuideCompiler, name: str) -> None:
    value = schema({"type": "string", "format": name})
    check(value)
    compiler.compile(value)


@pytest.mark.parametrize(
    "keyword",
    [
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "$schema",
        "$id",
        "$anchor",
        "discriminator",
        "example",
        "x-a",
    ],
)
def test_annotations_change_nothing_for_the_engine(compiler: GuideCompiler, keyword: str) -> None:
    value: dict[str, Json] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:a",
        "$anchor": "a",
        "examples": [1],
        "deprecated": True,
        "readOnly": True,
        "writeOnly": True,
        "discriminator": {"propertyName": "a"},
    }
    guidance = schema({"type": "boolean", keyword: value.get(keyword, "x")})
    check(guidance)
    plain = compiler.compile(schema({"type": "boolean"})).mask()
    assert (compiler.compile(guidance).mask() == plain).all()

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Literal

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outlines import types
from pydantic import BaseModel, Field

from tokenweir.core.errors import GuidanceError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import Guidance, GuidanceKind
from tokenweir.runtime.guidance import sources
from tokenweir.runtime.guidance.check import check
from tokenweir.runtime.guidance.masks import CompilerOptions, Guide, GuideCompiler
from tokenweir.runtime.guidance.outlines_terms import guidance_of
from tokenweir.runtime.guidance.sources import compact, grammar_source
from tokenweir.runtime.guidance.vocabulary import Vocabulary, file_vocabulary, piece_vocabulary

ROWS = 32
_HIDDEN = 48


def schema(value: Json) -> Guidance:
    return Guidance(kind="json_schema", value=json.dumps(value))


class RandomModel:
    """A recurrent network with random weights, one row per sequence: its logits know nothing of JSON."""

    def __init__(self, width: int, rows: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._embedding = random.standard_normal((width, _HIDDEN))
        self._recurrence = random.standard_normal((_HIDDEN, _HIDDEN)) / np.sqrt(_HIDDEN)
        # Logits of about the spread of the noise: a model that draws, rather than one that runs in circles.
        self._head = random.standard_normal((_HIDDEN, width)) / np.sqrt(_HIDDEN)
        self._state = random.standard_normal((rows, _HIDDEN))
        self._random = random

    def logits(self, last: Sequence[int]) -> np.ndarray:
        self._state = np.tanh(self._state @ self._recurrence + self._embedding[list(last)])
        return self._state @ self._head + self._random.gumbel(size=(len(last), len(self._embedding)))


def allowed(guide: Guide, width: int) -> np.ndarray:
    return np.unpackbits(guide.mask().view(np.uint8), bitorder="little")[:width].astype(bool)


def decode(
    compiler: GuideCompiler,
    vocabulary: Vocabulary,
    guidance: Sequence[Guidance],
    *,
    most: int = 700,
    seed: int = 0,
) -> list[str]:
    """Decode a batch in step, as an engine does, each row with a guide of its own, and return the finished texts."""
    guides = [compiler.compile(one) for one in guidance]
    model = RandomModel(vocabulary.width, len(guides), seed)
    last = [0] * len(guides)
    written: list[list[int]] = [[] for _ in guides]
    ended = [False] * len(guides)
    for _ in range(most):
        logits = model.logits(last)
        for row, guide in enumerate(guides):
            masked = np.where(allowed(guide, vocabulary.width), logits[row], -np.inf)
            token = last[row] = int(masked.argmax())
            # As engines do, the guide is asked on after the end: it must force the end then.
            assert not ended[row] or token in vocabulary.ends
            guide.accept(token)
            ended[row] = ended[row] or token in vocabulary.ends
            if not ended[row]:
                written[row].append(token)
        if all(ended):
            break
    assert all(ended), "an answer was not finished"
    return [vocabulary.tokenizer().decode_str(tokens) for tokens in written]


PERSON: dict[str, Json] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mood": {"enum": ["calm", "gereizt", "物静か", None, 7]},
        "scores": {
            "type": "array",
            "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2},
            "minItems": 1,
            "maxItems": 3,
        },
        "home": {"$ref": "#/$defs/place"},
        "pet": {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"const": "cat"}]},
    },
    "required": ["name", "age", "mood", "scores", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {
                "at": {
                    "type": "array",
                    "prefixItems": [{"type": "integer", "minimum": -90, "maximum": 90}, {"type": "boolean"}],
                    "items": False,
                    "minItems": 2,
                },
                "within": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
            },
            "required": ["at", "within"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Json]] = [
    PERSON,
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12},
    {"type": "integer", "minimum": -100, "maximum": 100, "multipleOf": 7},
    {"type": "number", "minimum": 1e-7, "maximum": 2e-7},
    {"type": "string", "pattern": "^[a-c]{2,5}é?$"},
    {"type": "string", "pattern": "ab", "maxLength": 12},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "format": "uuid"},
    {"enum": ["a\u2028", {"x": [1, "é"]}, 2.5, True, '"\\']},
    {"const": {"a": [1, None, {"ü\n": "\U0001f600"}]}},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "null"}}, "additionalProperties": False},
    {"type": ["integer", "string"], "minimum": 0, "maximum": 3, "maxLength": 2},
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "a"}, "v": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["kind", "v"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "b"}},
                "required": ["kind"],
                "additionalProperties": False,
            },
        ]
    },
    {
        "allOf": [
            {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 5}},
                "required": ["a"],
            },
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"], "maxProperties": 2},
        ]
    },
    {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 3},
]


@pytest.mark.parametrize("seed", range(3))
def test_32_sequences_of_random_weights_all_give_valid_json(
    compiler: GuideCompiler, vocabulary: Vocabulary, seed: int
) -> None:
    schemas = [SCHEMAS[row % len(SCHEMAS)] for row in range(ROWS)]
    texts = decode(compiler, vocabulary, [schema(one) for one in schemas], seed=seed)
    assert len(texts) == ROWS
    for text, one in zip(texts, schemas, strict=True):
        value = json.loads(text)
        jsonschema.validate(value, one, cls=jsonschema.Draft202012Validator)
        assert not re.search(r"[ \n\t]", re.sub(r'"(?:\\.|[^"\\])*"', "", text)), "white space between values"


def test_the_test_model_writes_no_json_by_itself(vocabulary: Vocabulary) -> None:
    model = RandomModel(vocabulary.width, ROWS, 0)
    last = [0] * ROWS
    written: list[list[int]] = [[] for _ in last]
    for _ in range(30):
        last = [int(row.argmax()) for row in model.logits(last)]
        for row, token in enumerate(last):
            written[row].append(token)
    for tokens in written:
        with pytest.raises(ValueError, match=r"Expecting|Extra data|Invalid|Unterminated"):
            json.loads(vocabulary.tokenizer().decode_str(tokens))


def test_tokens_that_are_bytes_are_guided_as_well(byte_vocabulary: Vocabulary) -> None:
    compiler = GuideCompiler(byte_vocabulary)
    for text in decode(compiler, byte_vocabulary, [schema(PERSON)] * 8, most=5000):
        jsonschema.validate(json.loads(text), PERSON, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("kind", "value", "matches"),
    [
        ("regex", r"(red|green){2} [0-9]{3}\.?", r"(red|green){2} [0-9]{3}\.?"),
        ("regex", "^ab?$", "ab?"),
        ("regex", r"\d{2}|x", r"\d{2}|x"),
        ("regex", "é{3}", "é{3}"),
        ("choice", '["yes", "no", "yes, but"]', "yes|no|yes, but"),
        ("choice", '["a.b", "(", "\\n", "\\u2028é"]', "a\\.b|\\(|\n|\u2028é"),
        ("grammar", 'start: "x" n "."\nn: /[0-9]{1,2}/ | "(" n ")"', r"x\(*[0-9]{1,2}\)*\."),
    ],
)
def test_expressions_choices_and_grammars_are_matched_in_full(
    compiler: GuideCompiler, vocabulary: Vocabulary, kind: GuidanceKind, value: str, matches: str
) -> None:
    guidance = Guidance(kind=kind, value=value)
    check(guidance)
    for text in decode(compiler, vocabulary, [guidance] * 12):
        assert re.fullmatch(matches, text), text


def test_a_schema_in_a_grammar_is_compact_too(compiler: GuideCompiler, vocabulary: Vocabulary) -> None:
    inner = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    grammar = Guidance(kind="grammar", value=f'start: "ok " value\nvalue: %json {json.dumps(inner)}\n')
    check(grammar)
    assert set(decode(compiler, vocabulary, [grammar] * 12)) <= {'ok {"a":true}', 'ok {"a":false}'}


@settings(max_examples=40, deadline=None)
@given(
    choices=st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    seed=st.integers(0, 1000),
)
def test_any_texts_can_be_chosen_from(vocabulary: Vocabulary, choices: list[str], seed: int) -> None:
    compiler = GuideCompiler(vocabulary)
    guidance = Guidance(kind="choice", value=json.dumps(choices))
    check(guidance)
    for text in decode(compiler, vocabulary, [guidance] * 3, seed=seed):
        assert text in choices


def bounded(draw: st.DrawFn, depth: int) -> dict[str, Json]:
    """Draw a schema that the check lets through and that a random answer satisfies in few tokens."""
    kinds = ["integer", "number", "string", "boolean", "null", "enum"] + (
        ["array", "object", "anyOf"] if depth else []
    )
    match draw(st.sampled_from(kinds)):
        case "integer" | "number" as kind:
            low = draw(st.integers(-1000, 1000))
            return {"type": kind, "minimum": low, "maximum": low + draw(st.integers(0, 500))}
        case "string":
            least = draw(st.integers(0, 3))
            return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 4))}
        case "enum":
            scalars = (
                st.none()
                | st.booleans()
                | st.integers(-99, 99)
                | st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
            )
            return {"enum": draw(st.lists(scalars, min_size=1, max_size=4, unique_by=repr))}
        case "array":
            return {"type": "array", "items": bounded(draw, depth - 1), "maxItems": draw(st.integers(0, 3))}
        case "object":
            names = draw(
                st.lists(
                    st.text(st.characters(exclude_categories=("Cs",)), max_size=4), max_size=3, unique=True
                )
            )
            return {
                "type": "object",
                "properties": {name: bounded(draw, depth - 1) for name in names},
                "required": [name for name in names if draw(st.booleans())],
                "additionalProperties": False,
            }
        case "anyOf":
            return {"anyOf": [bounded(draw, depth - 1) for _ in range(draw(st.integers(1, 3)))]}
        case kind:
            return {"type": kind}


@settings(max_examples=60, deadline=None)
@given(value=st.composite(lambda draw: bounded(draw, 3))(), seed=st.integers(0, 1000))
def test_any_schema_that_passes_the_check_is_obeyed(
    vocabulary: Vocabulary, value: dict[str, Json], seed: int
) -> None:
    check(schema(value))
    compiler = GuideCompiler(vocabulary)
    for text in decode(compiler, vocabulary, [schema(value)] * 2, most=4000, seed=seed):
        jsonschema.validate(json.loads(text), value, cls=jsonschema.Draft202012Validator)


def test_the_end_is_forced_once_the_answer_is_whole(compiler: GuideCompiler, vocabulary: Vocabulary) -> None:
    guide = compiler.compile(schema({"const": "ab"}))
    tokens = vocabulary.tokenizer().tokenize_str('"ab"')
    for token in tokens:
        assert not guide.done
        assert not allowed(guide, vocabulary.width)[0]
        guide.accept(token)
    assert guide.done
    for _ in range(3):
        assert np.flatnonzero(allowed(guide, vocabulary.width)).tolist() == [0]
        guide.accept(0)
    with pytest.raises(GuidanceError, match="follows an answer that is whole"):
        guide.accept(tokens[0])


def test_an_answer_that_could_go_on_may_end_too(compiler: GuideCompiler, vocabulary: Vocabulary) -> None:
    guide = compiler.compile(Guidance(kind="regex", value="a|ab"))
    guide.accept(vocabulary.tokenizer().tokenize_str("a")[0])
    assert not guide.done
    assert allowed(guide, vocabulary.width)[0]
    guide.accept(0)
    assert guide.done


def test_every_end_of_a_model_is_an_end(tokenizer_file: Path, vocabulary: Vocabulary) -> None:
    many = file_vocabulary(tokenizer_file, width=vocabulary.width, ends=[2, 0])
    guide = GuideCompiler(many).compile(Guidance(kind="regex", value="a*"))
    assert allowed(guide, many.width)[[0, 1, 2]].tolist() == [True, False, True]
    guide.accept(2)
    assert np.flatnonzero(allowed(guide, many.width)).tolist() == [0, 2]


def test_a_token_that_was_not_allowed_is_refused(compiler: GuideCompiler, vocabulary: Vocabulary) -> None:
    guide = compiler.compile(schema({"type": "boolean"}))
    with pytest.raises(GuidanceError, match="is not what the guidance allows"):
        guide.accept(vocabulary.tokenizer().tokenize_str("9")[0])


def test_special_tokens_and_the_padding_of_the_logits_are_never_allowed(
    compiler: GuideCompiler, vocabulary: Vocabulary
) -> None:
    guide = compiler.compile(Guidance(kind="regex", value="(?s:.)*"))
    bits = allowed(guide, vocabulary.words * 32)
    assert bits[0], "the end"
    assert not bits[1:4].any(), "the marks of roles"
    assert not bits[400:].any(), "numbers without a token"
    assert guide.mask().shape == (vocabulary.words,) == (13,)
    assert guide.mask().dtype == np.uint32


def test_guides_of_the_same_guidance_do_not_touch_each_other(
    compiler: GuideCompiler, vocabulary: Vocabulary
) -> None:
    first, second = compiler.compile(schema(PERSON)), compiler.compile(schema(PERSON))
    before = second.mask().copy()
    first.accept(vocabulary.tokenizer().tokenize_str("{")[0])
    assert not np.array_equal(first.mask(), before)
    assert np.array_equal(second.mask(), before)
    branch = first.copy()
    branch.accept(int(np.flatnonzero(allowed(branch, vocabulary.width))[0]))
    assert np.array_equal(compiler.compile(schema(PERSON)).mask(), before)
    first.accept(int(np.flatnonzero(allowed(first, vocabulary.width))[-1]))


def test_threads_may_compile_the_same_at_once(vocabulary: Vocabulary) -> None:
    compiler = GuideCompiler(vocabulary)
    masks: list[bytes] = []
    faults: list[Exception] = []

    def work() -> None:
        try:
            masks.extend(compiler.compile(schema(PERSON)).mask().tobytes() for _ in range(20))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test reports it
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(masks) == 80
    assert len(set(masks)) == 1


def test_what_is_compiled_is_kept_within_bounds(vocabulary: Vocabulary) -> None:
    compiler = GuideCompiler(vocabulary, CompilerOptions(entries=3))
    for number in range(5):
        compiler.check(Guidance(kind="regex", value=f"a{number}"))
    assert compiler.kept == 3
    small = GuideCompiler(vocabulary, CompilerOptions(text_bytes=100))
    for letter in "abc":
        small.check(Guidance(kind="regex", value=letter * 40))
    assert small.kept == 2


def test_what_takes_too_long_is_refused_and_remembered(vocabulary: Vocabulary) -> None:
    compiler = GuideCompiler(vocabulary, CompilerOptions(compile_limit_ns=1))
    for _ in range(2):
        with pytest.raises(GuidanceError, match=r"took .* s to compile, more than 1ns"):
            compiler.compile(schema(PERSON))
    assert compiler.kept == 1


@pytest.mark.parametrize(
    ("kind", "value", "what"),
    [
        ("regex", "[", "unclosed character class"),
        ("regex", "a^b", "lookarounds not supported"),
        ("grammar", "start: a\na: a", "cannot guide"),
        ("grammar", "start: @foo", "unknown grammar @foo"),
        ("grammar", 'start: "a', "cannot guide"),
        ("json_schema", '{"type":"integer","minimum":3,"maximum":2}', "minimum .3. is greater than maximum"),
        ("json_schema", '{"enum":[]}', "malformed|empty"),
        ("json_schema", '{"type":"string","minLength":"3"}', "malformed at #/minLength"),
        ("json_schema", '{"type":"strnig"}', "malformed at #/type"),
        ("json_schema", '{"oneOf":[{"type":"integer"},{"type":"number"}]}', "oneOf constraints"),
        ("json_schema", '{"x-guidance":{"lenient":true}}', "x-guidance"),
    ],
)
def test_what_cannot_guide_says_why(
    compiler: GuideCompiler, kind: GuidanceKind, value: str, what: str
) -> None:
    for _ in range(2):
        with pytest.raises(GuidanceError, match=what) as caught:
            compiler.compile(Guidance(kind=kind, value=value))
        assert "\n" not in str(caught.value)
        assert str(caught.value).count("mend it") <= 1
        assert len(str(caught.value)) < 500


def test_a_vocabulary_that_cannot_write_it_is_told() -> None:
    letters = piece_vocabulary([b"<end>", b"a", b"b"], special=[0], ends=[0])
    with pytest.raises(GuidanceError, match=r"no token of this model|cannot guide"):
        GuideCompiler(letters).compile(schema({"type": "boolean"}))


class Pet(BaseModel):
    name: str = Field(max_length=8)
    legs: int = Field(ge=0, le=8)
    born: date


def test_outlines_types_are_guidance() -> None:
    assert guidance_of(Literal["red", "blue"]) == Guidance(kind="regex", value="(red|blue)")
    assert guidance_of(types.Choice(["red", "blue"])) == Guidance(kind="choice", value='["red","blue"]')
    assert guidance_of(types.Regex("[0-9]+")) == Guidance(kind="regex", value="[0-9]+")
    assert guidance_of(types.CFG('start: "a"')) == Guidance(kind="grammar", value='start: "a"')
    pet = guidance_of(Pet)
    assert pet.kind == "json_schema"
    check(pet)
    with pytest.raises(GuidanceError, match="no output type"):
        guidance_of(object())


def test_a_pydantic_model_is_what_comes_back(compiler: GuideCompiler, vocabulary: Vocabulary) -> None:
    for text in decode(compiler, vocabulary, [guidance_of(Pet)] * 6):
        Pet.model_validate_json(text)


@pytest.mark.parametrize(
    "guidance",
    [
        schema(PERSON),
        Guidance(kind="regex", value="ab{2}|c"),
        Guidance(kind="choice", value='["a b", "c.d", "é"]'),
        Guidance(kind="grammar", value='start: "a" b\nb: /[0-9]/'),
    ],
    ids=lambda one: one.kind if isinstance(one, Guidance) else "",
)
def test_with_outlines_and_without_the_grammar_is_the_same(guidance: Guidance) -> None:
    plain = sources._Direct()  # pyright: ignore[reportPrivateUsage]
    assert type(grammar_source()).__name__ == "OutlinesSource"
    assert grammar_source().grammar(compact(guidance)) == plain.grammar(compact(guidance))

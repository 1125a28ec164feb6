from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.factories.sim_models import directory, load

from tokenweir.core.errors import GuidanceError, InputError, ParameterError
from tokenweir.core.requests import GenerateRequest, Json, Message, Sampling, Tool
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.bridge.messages import Prepare
from tokenweir.runtime.child.prepare import RequestLimits, prepare, size
from tokenweir.runtime.child.requests import Request
from tokenweir.runtime.engines.sim import SimModel
from tokenweir.runtime.options import RunOptions

ADD = Tool(
    name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
)
LOOK = Tool(name="look_up", parameters={"$defs": {"q": {"type": "string"}}, "type": "object"})
HELLO = (Message(role="user", content="hello"),)
LIMITS = RequestLimits()
PLAIN = RunOptions()
SUB: Json = {"type": "function", "function": {"name": "sub"}}
CHUNK = struct.Struct(">I4s")


def png(width: int, height: int) -> bytes:
    """Return a black image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return CHUNK.pack(len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(bytes(width + 1) for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def image(data: bytes) -> dict[str, Json]:
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()},
    }


@pytest.fixture
def model(tmp_path: Path) -> SimModel:
    return load(directory(tmp_path / "m"), draft="d")


def chat(
    model: SimModel, *, options: RunOptions = PLAIN, limits: RequestLimits = LIMITS, **keys: object
) -> Request:
    fields: dict[str, object] = {"kind": "chat", "model": "m", "messages": HELLO, **keys}
    return prepare(
        Prepare(stream=1, model="m", request=msgspec.convert(fields, GenerateRequest), options=options),
        model,
        limits,
    )


def test_a_chat_is_rendered_and_tokenised_once(model: SimModel) -> None:
    request = chat(model)
    rendered = model.format.render(HELLO, (), {})
    assert request.tokens == tuple(model.format.encode(rendered, special=False))
    assert request.rules.fenced
    assert not request.rules.reasoning


def test_an_answer_without_a_length_may_fill_the_context(model: SimModel) -> None:
    request = chat(model)
    assert size(request).max_tokens == 4096 - len(request.tokens)
    capped = chat(model, limits=RequestLimits(default_max_tokens=100))
    assert size(capped).max_tokens == 100
    stated = chat(model, limits=RequestLimits(default_max_tokens=100), sampling=Sampling(max_tokens=200, n=3))
    assert (size(stated).max_tokens, size(stated).sequences) == (200, 3)


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(model: SimModel) -> None:
    with pytest.raises(
        ParameterError, match=r"the prompt has 5000 tokens; the context of 'm' holds 4096.*4095"
    ):
        chat(model, kind="completion", messages=(), prompt=(300,) * 5000)
    with pytest.raises(
        ParameterError, match=r"4000 tokens of prompt and max_tokens 100 are 4100.*96 or less"
    ):
        chat(model, kind="completion", messages=(), prompt=(300,) * 4000, sampling=Sampling(max_tokens=100))


def test_what_the_batch_cannot_do_goes_apart(model: SimModel) -> None:
    assert chat(model, options=RunOptions(use_draft=False)).lane == "batch"
    assert chat(model).lane == "exclusive"
    assert chat(model, sampling=Sampling(n=2)).lane == "batch"
    without = RunOptions(use_draft=False)
    seeded = chat(model, options=without, sampling=Sampling(seed=7, n=2))
    assert seeded.lane == "exclusive"
    assert [decoding.seed for decoding in seeded.choices] == [7, 8]
    assert chat(model, options=without, sampling=Sampling(seed=7, temperature=0.0)).lane == "batch"
    assert chat(model, options=RunOptions(use_draft=False, kv_bits=4)).lane == "exclusive"


@pytest.mark.parametrize(
    ("capability", "keys", "options"),
    [
        ("logprobs", {"sampling": Sampling(logprobs=1)}, RunOptions()),
        ("seed", {"sampling": Sampling(seed=1)}, RunOptions()),
        ("quantised_kv", {}, RunOptions(kv_bits=8)),
        ("draft", {}, RunOptions(use_draft=True)),
        ("tools", {"tools": (ADD,)}, RunOptions()),
        ("guidance", {}, RunOptions(guidance=Guidance(kind="regex", value="a+"))),
        ("vision", {"messages": (Message(role="user", content=(image(png(2, 2)),)),)}, RunOptions()),
        ("chat", {}, RunOptions()),
        ("completion", {"kind": "completion", "prompt": "x", "messages": ()}, RunOptions()),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(
    tmp_path: Path, capability: str, keys: dict[str, Any], options: RunOptions
) -> None:
    able: list[Json] = [
        one
        for one in (
            "chat",
            "completion",
            "vision",
            "tools",
            "guidance",
            "logprobs",
            "draft",
            "quantised_kv",
            "seed",
        )
        if one != capability
    ]
    model = load(directory(tmp_path / "m", capabilities=able))
    with pytest.raises(ParameterError, match="the model 'm' does not support"):
        chat(model, options=options, **keys)


@pytest.mark.parametrize(
    ("keys", "options", "match"),
    [
        ({"sampling": Sampling(temperature=-1.0)}, RunOptions(), "temperature is -1.0"),
        ({"sampling": Sampling(top_p=1.5)}, RunOptions(), "top_p is 1.5"),
        ({"sampling": Sampling(n=0)}, RunOptions(), "n is 0"),
        ({"sampling": Sampling(max_tokens=0)}, RunOptions(), "max_tokens is 0"),
        ({"sampling": Sampling(max_tokens=2, min_tokens=3)}, RunOptions(), "min_tokens 3"),
        ({"sampling": Sampling(stop=("",))}, RunOptions(), "a stop string is empty"),
        ({"sampling": Sampling(logprobs=21)}, RunOptions(), "logprobs is 21"),
        ({}, RunOptions(logit_bias={512: 1.0}), "logit_bias gives the token 512"),
        ({"messages": ()}, RunOptions(), "there are no messages"),
        ({"extra": {"mirostat": 2}}, RunOptions(), "the option 'mirostat' is not supported"),
        ({"extra": {"chat_template_kwargs": {"mood": 1}}}, RunOptions(), "the chat template takes no 'mood'"),
        ({"kind": "embedding"}, RunOptions(), "embeddings are not generated"),
        ({"kind": "completion", "prompt": ()}, RunOptions(), "the prompt is empty"),
        ({"kind": "completion", "prompt": (512,)}, RunOptions(), "the prompt holds the token 512"),
        (
            {"kind": "completion", "prompt": "x", "tools": (ADD,)},
            RunOptions(),
            "tools need the chat interface",
        ),
        ({"tool_choice": "required"}, RunOptions(), "there are no tools"),
        (
            {"tools": (ADD,), "tool_choice": SUB},
            RunOptions(),
            "names no tool",
        ),
        (
            {"tools": (ADD,), "response_format": {"type": "json_object"}},
            RunOptions(),
            "cannot be a tool call as well",
        ),
        (
            {"messages": (Message(role="user", content=({"type": "audio"},)),)},
            RunOptions(),
            "has the type 'audio'",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_value(
    tmp_path: Path, keys: dict[str, Any], options: RunOptions, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        chat(load(directory(tmp_path / "m")), options=options, **keys)


def test_text_parts_are_joined_and_images_taken_out(model: SimModel) -> None:
    parts: tuple[dict[str, Json], ...] = ({"type": "text", "text": "a"}, {"type": "text", "text": "b"})
    joined = chat(model, messages=(Message(role="user", content=parts),))
    assert joined.tokens == chat(model, messages=(Message(role="user", content="a\nb"),)).tokens
    seen = chat(
        model, messages=(Message(role="user", content=({"type": "text", "text": "what?"}, image(png(2, 3)))),)
    )
    assert seen.images == (png(2, 3),)
    assert len(seen.tokens) < 20


def test_images_are_bounded_and_never_fetched(model: SimModel) -> None:
    two = (Message(role="user", content=(image(png(2, 2)), image(png(2, 2)))),)
    with pytest.raises(ParameterError, match="2 images"):
        chat(model, messages=two, limits=RequestLimits(max_images=1))
    with pytest.raises(ParameterError, match="2 × 2 pixels"):
        chat(model, messages=two, limits=RequestLimits(max_image_pixels=3))
    with pytest.raises(ParameterError, match="is longer than 10 bytes"):
        chat(model, messages=two, limits=RequestLimits(max_image_bytes=10))
    afar: dict[str, Json] = {"type": "image_url", "image_url": {"url": "http://example.com/x.png"}}
    with pytest.raises(ParameterError, match="nothing is fetched"):
        chat(model, messages=(Message(role="user", content=(afar,)),))


def test_a_template_may_open_the_reasoning(model: SimModel) -> None:
    thinking: dict[str, Json] = {"chat_template_kwargs": {"enable_thinking": True}}
    assert chat(model, extra=thinking).rules.reasoning


def test_a_choice_of_no_tool_shows_none(model: SimModel) -> None:
    assert chat(model, tools=(ADD,), tool_choice="none").tokens == chat(model).tokens
    shown = chat(model, tools=(ADD,))
    assert shown.rules.tools == (ADD,)
    assert len(shown.tokens) > len(chat(model).tokens)


def test_a_forced_tool_is_guidance_by_its_schema(model: SimModel) -> None:
    named = chat(model, tools=(ADD, LOOK), tool_choice={"type": "function", "function": {"name": "add"}})
    guidance = named.choices[0].guidance
    assert guidance is not None
    assert json.loads(guidance.value) == ADD.parameters
    assert (named.rules.forced, named.rules.fenced) == ("add", False)
    required = chat(model, tools=(ADD, LOOK), tool_choice="required")
    guidance = required.choices[0].guidance
    assert guidance is not None
    told = json.loads(guidance.value)
    assert [call["properties"]["name"]["const"] for call in told["anyOf"]] == ["add", "look_up"]
    assert told["$defs"] == {"q": {"type": "string"}}
    assert required.rules.forced == "*"


def test_guidance_may_come_as_a_response_format(model: SimModel) -> None:
    wanted: dict[str, Json] = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "integer"}},
    }
    request = chat(model, response_format=wanted)
    assert request.choices[0].guidance == Guidance(kind="json_schema", value='{"type":"integer"}')
    assert chat(model, response_format={"type": "text"}).choices[0].guidance is None
    with pytest.raises(ParameterError, match="differ"):
        chat(model, response_format=wanted, options=RunOptions(guidance=Guidance(kind="regex", value="a")))


def test_guidance_that_cannot_be_obeyed_is_refused_before_decoding(model: SimModel) -> None:
    with pytest.raises(GuidanceError):
        chat(model, options=RunOptions(guidance=Guidance(kind="regex", value="(")))


@pytest.mark.parametrize(
    ("guidance", "what"),
    [
        (Guidance(kind="json_schema", value='{"type":"string","maxlength":3}'), "'maxlength' at #"),
        (Guidance(kind="json_schema", value='{"type":"array","uniqueItems":true}'), "'uniqueItems' at #"),
        (Guidance(kind="json_schema", value='{"x-guidance":{"lenient":true}}'), "'x-guidance' at #"),
        (Guidance(kind="choice", value='["a","a"]'), "listed twice"),
    ],
)
def test_guidance_that_would_be_passed_over_is_refused_by_name(
    model: SimModel, guidance: Guidance, what: str
) -> None:
    with pytest.raises(GuidanceError, match=what):
        chat(model, options=RunOptions(guidance=guidance))


def test_tokens_to_draft_ask_for_a_draft(model: SimModel, tmp_path: Path) -> None:
    drafted = chat(model, options=RunOptions(draft_tokens=5), sampling=Sampling(n=2)).choices[0]
    assert (drafted.use_draft, drafted.draft_tokens) == (True, 5)
    with pytest.raises(ParameterError, match="draft_tokens and use_draft"):
        chat(model, options=RunOptions(draft_tokens=5, use_draft=False))
    alone = load(directory(tmp_path / "alone"))
    with pytest.raises(ParameterError, match="without a draft model"):
        chat(alone, options=RunOptions(draft_tokens=5))

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlx_vlm", reason="mlx-vlm is not installed: needs the extra 'vision'")

import jsonschema
import msgspec
from PIL import Image
from tests.contract.mlx.decoding import GREEDY, LIMITS, Answer, decoder_of, finish, one, run
from tests.factories.language_models import edit_json
from tests.factories.vision_models import MERGE, PATCH, png, random_qwen2_vl

from tokenweir.core.errors import GuidanceError, InputError
from tokenweir.core.requests import Json, Message
from tokenweir.ports.inference import (
    Decoder,
    DecodeSequence,
    Decoding,
    Guidance,
    GuidanceChecker,
    InferenceEngine,
    LoadedModel,
    LoadSpec,
)
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.models.manifest import read_card

RED, GREEN = png(56, 56), png(56, 56, (0, 255, 0))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_qwen2_vl(tmp_path_factory.mktemp("vision") / "qwen2-vl")


@pytest.fixture(scope="module")
def seeing(directory: Path) -> InferenceEngine:
    return registry.create("mlx-vision", EngineOptions(options={"max_pixels": 200_000}))


@pytest.fixture(scope="module")
def model(seeing: InferenceEngine, directory: Path) -> Iterator[LoadedModel]:
    model = seeing.load(LoadSpec(name="v", path=str(directory)), read_card(directory, "v"))
    yield model
    model.close()


@pytest.fixture
def decoder(model: LoadedModel) -> Iterator[Decoder]:
    decoder = decoder_of(model)
    yield decoder
    assert not decoder.step(LIMITS)


def prompt(model: LoadedModel, images: int = 1, text: str = "What flows?") -> tuple[int, ...]:
    parts: list[dict[str, Json]] = [{"type": "image"} for _ in range(images)]
    parts.append({"type": "text", "text": text})
    rendered = model.format.render((Message(role="user", content=tuple(parts)),), (), {})
    return tuple(model.format.encode(rendered, special=False))


def sequence(number: int, model: LoadedModel, *images: bytes, how: Decoding = GREEDY) -> DecodeSequence:
    return DecodeSequence(sequence=number, tokens=prompt(model, len(images)), decoding=how, images=images)


def test_the_card_says_that_it_sees(model: LoadedModel) -> None:
    assert {"chat", "completion", "vision", "guidance", "logprobs", "seed"} == set(model.card.capabilities)
    assert model.card.context_tokens == 1024
    assert model.embedder is None


def test_an_image_is_read_and_what_it_shows_matters(model: LoadedModel, decoder: Decoder) -> None:
    red, green, again = run(
        decoder, [sequence(number, model, image) for number, image in enumerate((RED, GREEN, RED))]
    )
    assert red.tokens == again.tokens
    assert red.tokens != green.tokens
    assert red.finish == "length"


@pytest.mark.parametrize(("width", "height"), [(56, 56), (112, 56), (140, 168)])
def test_an_image_takes_as_many_tokens_as_it_has_patches(
    model: LoadedModel, decoder: Decoder, width: int, height: int
) -> None:
    tokens = prompt(model)
    answer = one(decoder, tokens, images=(png(width, height),))
    patches = (width // (PATCH * MERGE)) * (height // (PATCH * MERGE))
    assert answer.prefilled.prompt_tokens == len(tokens) - 1 + patches


def test_several_images_stand_where_the_messages_have_them(model: LoadedModel, decoder: Decoder) -> None:
    both = one(decoder, prompt(model, 2), images=(RED, GREEN))
    other = one(decoder, prompt(model, 2), images=(GREEN, RED))
    assert both.prefilled.prompt_tokens == other.prefilled.prompt_tokens
    assert both.tokens != other.tokens


def test_text_alone_is_answered_too(model: LoadedModel, decoder: Decoder) -> None:
    tokens = prompt(model, 0)
    first = one(decoder, tokens)
    one(decoder, prompt(model), images=(RED,))
    # What an image left behind in the model does not reach the next text.
    assert one(decoder, tokens).tokens == first.tokens


def test_sequences_that_take_turns_do_not_disturb_each_other(model: LoadedModel, decoder: Decoder) -> None:
    alone = [one(decoder, prompt(model), images=(image,)).tokens for image in (RED, png(112, 84))]
    decoder.insert([sequence(1, model, RED), sequence(2, model, png(112, 84))])
    found = {1: Answer([]), 2: Answer([])}
    for step in range(200):
        held = frozenset({1} if step // 3 % 2 else {2})
        for event in decoder.step(msgspec.structs.replace(LIMITS, held=held)):
            assert event.sequence not in held
            found[event.sequence].events.append(event)
    assert [found[1].tokens, found[2].tokens] == alone


def test_a_removed_sequence_lets_the_next_in(model: LoadedModel, decoder: Decoder) -> None:
    decoder.insert([sequence(1, model, RED), sequence(2, model, RED)])
    for _ in range(4):
        decoder.step(LIMITS)
    decoder.remove([1])
    assert finish(decoder, [2])[0].finish == "length"


def test_seeds_penalties_and_log_probabilities_work_as_for_text(model: LoadedModel, decoder: Decoder) -> None:
    tokens = prompt(model)
    seeded = Decoding(max_tokens=12, temperature=1.2, seed=3)
    first = one(decoder, tokens, seeded, images=(RED,))
    assert one(decoder, tokens, seeded, images=(RED,)).tokens == first.tokens
    assert one(decoder, tokens, msgspec.structs.replace(seeded, seed=4), images=(RED,)).tokens != first.tokens
    unlike = one(
        decoder,
        tokens,
        Decoding(max_tokens=30, temperature=0, presence_penalty=100, logprobs=3),
        images=(RED,),
    )
    assert len(set(unlike.tokens)) == len(unlike.tokens)
    best = unlike.drawn[0]
    assert best.alternatives[0] == (best.token, best.logprob)


def test_a_guided_answer_about_an_image_keeps_to_its_schema(model: LoadedModel, decoder: Decoder) -> None:
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "blue"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    guidance = Guidance(kind="json_schema", value=json.dumps(schema))
    assert isinstance(model, GuidanceChecker)
    model.check_guidance(guidance)
    with pytest.raises(GuidanceError):
        model.check_guidance(Guidance(kind="regex", value="(("))
    answer = one(decoder, prompt(model), Decoding(max_tokens=60, guidance=guidance), images=(RED,))
    detokenizer = model.format.detokenizer()
    text = "".join(map(detokenizer.add, answer.tokens)) + detokenizer.finish()
    jsonschema.validate(json.loads(text), schema)


def _bomb() -> bytes:
    """Return a PNG of a few bytes that says it is 50,000 by 50,000 pixels."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def _other_format() -> bytes:
    raw = io.BytesIO()
    Image.new("RGB", (20, 20)).save(raw, "TIFF")
    return raw.getvalue()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (RED[:-40], "cannot be read"),
        (b"GIF89a", "cannot be read"),
        (b"no image at all", "cannot be read"),
        (_other_format(), "cannot be read"),
        (_bomb(), "2500000000 pixels"),
        (png(500, 500), "500 × 500 pixels, and the most is 200000"),
    ],
    ids=["cut off", "head only", "foreign", "TIFF", "bomb", "large"],
)
def test_a_broken_or_large_image_breaks_its_own_sequence(
    model: LoadedModel, decoder: Decoder, image: bytes, said: str
) -> None:
    bad, good = run(decoder, [sequence(1, model, image), sequence(2, model, RED)])
    assert bad.broken.code == "bad_input"
    assert said in bad.broken.message
    assert good.finish


def test_every_kind_of_picture_becomes_one_in_colour(model: LoadedModel, decoder: Decoder) -> None:
    for mode, kind in (
        ("L", "PNG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
        ("1", "PNG"),
        ("RGB", "WEBP"),
    ):
        raw = io.BytesIO()
        Image.new(mode, (56, 56)).save(raw, kind)
        assert one(decoder, prompt(model), images=(raw.getvalue(),)).finish


def test_images_without_places_are_refused(model: LoadedModel, decoder: Decoder) -> None:
    assert "places for 1" in one(decoder, prompt(model, 1), images=(RED, GREEN)).broken.message
    assert "places for 0" in one(decoder, prompt(model, 0), images=(RED,)).broken.message


def test_an_image_that_does_not_fit_into_the_context_is_refused(model: LoadedModel, decoder: Decoder) -> None:
    how = Decoding(max_tokens=990, temperature=0)
    answer = one(decoder, prompt(model), how, images=(png(196, 196),))
    assert "tokens with its images" in answer.broken.message


def test_what_is_for_text_models_is_refused(
    seeing: InferenceEngine, directory: Path, model: LoadedModel, decoder: Decoder
) -> None:
    card = read_card(directory, "v")
    with pytest.raises(InputError, match="weight_bits"):
        seeing.load(LoadSpec(name="v", path=str(directory), weight_bits=4), card)
    with pytest.raises(InputError, match="draft"):
        seeing.load(LoadSpec(name="v", path=str(directory), draft=str(directory)), card)
    answer = one(decoder, prompt(model, 0), Decoding(max_tokens=3, kv_bits=8))
    assert "kv_bits" in answer.broken.message


def test_a_model_that_brings_code_is_refused(
    seeing: InferenceEngine, directory: Path, tmp_path: Path
) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    card = msgspec.structs.replace(read_card(directory, "v"), path=str(tmp_path))
    (tmp_path / "own.py").write_text("raise SystemExit")
    edit_json(tmp_path / "config.json", model_file="own.py")
    with pytest.raises(InputError, match="no foreign code is run"):
        seeing.load(LoadSpec(name="v", path=str(tmp_path)), card)


def test_unloading_returns_the_memory(seeing: InferenceEngine, directory: Path, model: LoadedModel) -> None:
    card = read_card(directory, "v")
    taken: list[int] = []
    for _ in range(4):
        other = seeing.load(LoadSpec(name="v", path=str(directory)), card)
        one(decoder_of(other), prompt(other), images=(RED,))
        other.close()
        taken.append(seeing.memory().active_bytes)
    assert max(taken) - min(taken) < 4096

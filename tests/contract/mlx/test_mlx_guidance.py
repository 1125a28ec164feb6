from __future__ import annotations

import json
import random
import re

import jsonschema
import msgspec
import pytest
from tests.contract.mlx.decoding import GREEDY, LIMITS, Answer, asked, decoder_of, finish, one, run

from tokenweir.core.errors import GuidanceError
from tokenweir.ports.inference import Decoder, Decoding, Guidance, GuidanceChecker, LoadedModel

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["weir", "river", "wave"]},
        "level": {"type": "integer", "minimum": 3, "maximum": 12},
        "open": {"type": "boolean"},
        "gates": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["name", "level", "open", "gates"],
    "additionalProperties": False,
}
JSON = Guidance(kind="json_schema", value=json.dumps(SCHEMA))


@pytest.fixture
def decoder(target: LoadedModel) -> Decoder:
    return decoder_of(target)


def written(model: LoadedModel, answer: Answer) -> str:
    detokenizer = model.format.detokenizer()
    return "".join(detokenizer.add(token) for token in answer.tokens) + detokenizer.finish()


def guided(guidance: Guidance, **more: object) -> Decoding:
    return msgspec.structs.replace(Decoding(max_tokens=120, temperature=1.0, guidance=guidance), **more)


def test_32_sequences_of_random_weights_all_give_what_the_schema_asks(
    target: LoadedModel, decoder: Decoder
) -> None:
    draw = random.Random(2)
    prompts = [tuple(draw.randrange(4, 380) for _ in range(draw.randint(1, 90))) for _ in range(32)]
    answers = run(decoder, [asked(number, prompt, guided(JSON)) for number, prompt in enumerate(prompts)])
    texts = [written(target, answer) for answer in answers]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert all(answer.finish == "stop" for answer in answers)
    assert len(set(texts)) > 20


@pytest.mark.parametrize("lane", ["batch", "exclusive"])
@pytest.mark.parametrize(
    ("guidance", "pattern"),
    [
        (Guidance(kind="regex", value="(weir|river) [0-9]{3}"), "(weir|river) [0-9]{3}"),
        (Guidance(kind="choice", value='["yes", "no", "perhaps"]'), "yes|no|perhaps"),
        (Guidance(kind="grammar", value='start: "a" ("b" | "c")+ "d"'), "a[bc]+d"),
    ],
)
def test_every_kind_of_guidance_is_obeyed(
    target: LoadedModel, decoder: Decoder, guidance: Guidance, pattern: str, lane: str
) -> None:
    for _ in range(4):
        answer = one(decoder, (5, 6, 7), guided(guidance, max_tokens=60, logit_bias={7: 2.0}), lane=lane)
        text = written(target, answer)
        if answer.finish == "stop":
            assert re.fullmatch(pattern, text)
        else:
            assert guidance.kind == "grammar"


def test_guidance_keeps_to_its_row(target: LoadedModel, decoder: Decoder) -> None:
    """Guided and free sequences, and guides of different kinds, side by side in one batch."""
    plain = (9, 80, 31)
    free = one(decoder, plain).tokens
    digits = Guidance(kind="regex", value="[0-9]{12}")
    answers = run(
        decoder,
        [
            asked(1, plain, guided(JSON)),
            asked(2, plain),
            asked(3, plain, guided(digits)),
            asked(4, plain),
            asked(5, plain, guided(JSON, temperature=0.0)),
        ],
    )
    assert answers[1].tokens == answers[3].tokens == free
    assert re.fullmatch("[0-9]{12}", written(target, answers[2]))
    for answer in (answers[0], answers[4]):
        jsonschema.validate(json.loads(written(target, answer)), SCHEMA)


def test_a_guided_sequence_joins_late_and_is_held_and_is_still_valid(
    target: LoadedModel, decoder: Decoder
) -> None:
    decoder.insert([asked(1, (5, 6, 7), msgspec.structs.replace(GREEDY, max_tokens=150))])
    for _ in range(5):
        decoder.step(LIMITS)
    decoder.insert([asked(2, (9, 80), guided(JSON))])
    held = msgspec.structs.replace(LIMITS, held=frozenset({2}))
    found = Answer([])
    for round_ in range(40):
        for event in decoder.step(held if round_ % 20 > 4 else LIMITS):
            if event.sequence == 2:
                found.events.append(event)
    if not found.finish:
        found.events += finish(decoder, [2])[0].events
    decoder.remove([1])
    jsonschema.validate(json.loads(written(target, found)), SCHEMA)


def test_a_seeded_guided_answer_is_reproducible_and_drafts_do_not_change_it(
    target: LoadedModel, decoder: Decoder
) -> None:
    how = guided(JSON, seed=11)
    first, second = one(decoder, (5, 6), how), one(decoder, (5, 6), how)
    assert first.tokens == second.tokens
    jsonschema.validate(json.loads(written(target, first)), SCHEMA)


def test_logprobs_of_a_guided_answer_are_finite(decoder: Decoder) -> None:
    answer = one(decoder, (5, 6), guided(JSON, logprobs=5, temperature=0.0))
    for event in answer.drawn[:-1]:
        assert event.logprob is not None
        assert event.logprob > -100
        assert all(value > -100 for _, value in event.alternatives)


def test_guidance_is_checked_before_decoding(target: LoadedModel) -> None:
    assert isinstance(target, GuidanceChecker)
    assert "guidance" in target.card.capabilities
    target.check_guidance(JSON)
    with pytest.raises(GuidanceError):
        target.check_guidance(Guidance(kind="regex", value="(unclosed"))


def test_guidance_that_was_not_checked_breaks_its_own_sequence(decoder: Decoder) -> None:
    bad, good = run(
        decoder, [asked(1, (5, 6), guided(Guidance(kind="regex", value="(unclosed"))), asked(2, (5, 6))]
    )
    assert bad.broken.code == "guidance"
    assert good.finish


def test_min_tokens_and_guidance_contradict_each_other(decoder: Decoder) -> None:
    assert "min_tokens" in one(decoder, (5, 6), guided(JSON, min_tokens=5)).broken.message

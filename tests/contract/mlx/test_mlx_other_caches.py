from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.contract.mlx.conftest import Load
from tests.contract.mlx.decoding import GREEDY, LIMITS, Answer, asked, decoder_of, finish, one, run
from tests.factories.other_models import CONFIGS, random_model

from tokenweir.core.errors import InputError
from tokenweir.ports.inference import Decoder, LoadedModel


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(
    request: pytest.FixtureRequest, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    kind: str = request.param
    return load(random_model(tmp_path_factory.mktemp("other") / kind, kind))


@pytest.fixture
def decoder(model: LoadedModel) -> Iterator[Decoder]:
    decoder = decoder_of(model)
    yield decoder
    assert not decoder.step(LIMITS)


def prompts(count: int, least: int = 1, most: int = 80) -> list[tuple[int, ...]]:
    draw = random.Random(count)
    return [tuple(draw.randrange(4, 380) for _ in range(draw.randint(least, most))) for _ in range(count)]


def test_both_lanes_and_the_batch_write_the_same(decoder: Decoder) -> None:
    many = prompts(5)
    alone = [one(decoder, prompt).tokens for prompt in many]
    assert len({tuple(tokens) for tokens in alone}) > 1
    assert [one(decoder, prompt, lane="exclusive").tokens for prompt in many[:2]] == alone[:2]
    together = run(decoder, [asked(number, prompt) for number, prompt in enumerate(many)])
    assert [answer.tokens for answer in together] == alone


def test_a_held_sequence_waits_and_loses_nothing(decoder: Decoder) -> None:
    """What cannot go back by a token stays in the batch while it is held."""
    how = msgspec.structs.replace(GREEDY, max_tokens=30)
    many = prompts(3)
    alone = [one(decoder, prompt, how).tokens for prompt in many]
    decoder.insert([asked(number, prompt, how) for number, prompt in enumerate(many)])
    found = {number: Answer([]) for number in range(3)}
    for _ in range(25):
        for event in decoder.step(msgspec.structs.replace(LIMITS, held=frozenset({1}))):
            assert event.sequence != 1 or not found[1].events
            found[event.sequence].events.append(event)
    open_ = [number for number in range(3) if not found[number].finish]
    for number, answer in zip(open_, finish(decoder, open_), strict=True):
        found[number].events += answer.events
    assert [found[number].tokens for number in range(3)] == alone


def test_known_prompts_and_conversations_are_answered_the_same(decoder: Decoder) -> None:
    (prompt,) = prompts(1, 150, 150)
    cold, warm = one(decoder, prompt), one(decoder, prompt)
    assert warm.prefilled.cached_tokens == len(prompt) - 1
    assert warm.tokens == cold.tokens
    longer = (*prompt, *cold.tokens, 9, 8, 7)
    again = one(decoder, longer)
    assert again.prefilled.cached_tokens >= len(prompt)
    assert again.tokens == one(decoder, longer, use_prefix_cache=False).tokens


def test_what_keeps_no_keys_and_values_cannot_quantise_them(model: LoadedModel, decoder: Decoder) -> None:
    assert "quantised_kv" not in model.card.capabilities
    answer = one(decoder, (5, 6), msgspec.structs.replace(GREEDY, kv_bits=8))
    assert "cannot be quantised" in answer.broken.message


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_what_cannot_go_back_is_not_loaded_with_a_draft_model(load: Load, tmp_path: Path, kind: str) -> None:
    target = random_model(tmp_path / "target", kind)
    draft = random_model(tmp_path / "draft", kind, seed=2)
    with pytest.raises(InputError, match="window or a state"):
        load(target, draft=draft)

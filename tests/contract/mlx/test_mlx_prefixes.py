from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from tests.contract.mlx.decoding import LIMITS, asked, decoder_of, one, run

from tokenweir.ports.inference import Decoder, Decoding, LoadedModel, LoadSpec, PrefixCaching
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.models.manifest import read_card


def words(count: int, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(4, 380) for _ in range(count))


def loaded(path: Path, options: EngineOptions) -> LoadedModel:
    card = read_card(path, "m")
    return registry.create("mlx", options).load(LoadSpec(name="m", path=str(path)), card)


@pytest.fixture
def decoder(target: LoadedModel) -> Decoder:
    return decoder_of(target)


def test_a_repeated_prompt_is_known_but_for_its_last_token_and_answered_the_same(decoder: Decoder) -> None:
    prompt = words(300, 1)
    cold, warm = one(decoder, prompt), one(decoder, prompt)
    assert cold.prefilled.cached_tokens == 0
    assert warm.prefilled.cached_tokens == 299
    assert warm.prefilled.prompt_tokens == 300
    assert warm.tokens == cold.tokens


def test_a_conversation_goes_on_from_its_last_answer(decoder: Decoder) -> None:
    prompt = words(120, 2)
    first = one(decoder, prompt)
    longer = (*prompt, *first.tokens, *words(40, 3))
    again = one(decoder, longer)
    assert again.prefilled.cached_tokens >= 120 + len(first.tokens) - 1
    assert again.tokens == one(decoder, longer, use_prefix_cache=False).tokens


@pytest.mark.parametrize("shared", [70, 128, 299])
def test_prompts_that_begin_alike_share_their_beginning(decoder: Decoder, shared: int) -> None:
    common = words(shared, 100 + shared)
    one(decoder, (*common, *words(80, 5)))
    other = (*common, *(token + 1 for token in words(90, 6)))
    found = one(decoder, other)
    assert shared <= found.prefilled.cached_tokens <= shared + 1
    assert found.tokens == one(decoder, other, use_prefix_cache=False).tokens


def test_a_batch_of_hits_and_misses_answers_as_each_would_alone(decoder: Decoder) -> None:
    common = words(200, 7)
    many = [(*common[: 40 * number], *words(30 + number, 200 + number)) for number in range(6)]
    alone = [one(decoder, prompt, use_prefix_cache=False).tokens for prompt in many]
    one(decoder, common)
    answers = run(decoder, [asked(number, prompt) for number, prompt in enumerate(many)])
    assert [answer.tokens for answer in answers] == alone
    assert sum(answer.prefilled.cached_tokens > 0 for answer in answers) >= 4


def test_a_prompt_is_known_while_it_is_still_answered(decoder: Decoder) -> None:
    prompt = words(250, 8)
    decoder.insert([asked(1, prompt)])
    while not any(event.sequence == 1 for event in decoder.step(LIMITS)):
        pass
    assert one(decoder, prompt).prefilled.cached_tokens == 249
    decoder.remove([1])


def test_who_asks_not_to_use_it_neither_reads_nor_writes(decoder: Decoder) -> None:
    prompt = words(150, 9)
    one(decoder, prompt, use_prefix_cache=False)
    assert one(decoder, prompt).prefilled.cached_tokens == 0
    assert one(decoder, prompt, use_prefix_cache=False).prefilled.cached_tokens == 0
    assert one(decoder, prompt).prefilled.cached_tokens == 149


def test_the_bytes_kept_stay_below_their_limit_and_the_latest_stay(models: dict[str, Path]) -> None:
    limit = 400_000
    model = loaded(models["target"], EngineOptions(prefix_cache_bytes=limit))
    decoder = decoder_of(model)
    assert isinstance(decoder, PrefixCaching)
    prompts = [words(200, 300 + number) for number in range(8)]
    for prompt in prompts:
        one(decoder, prompt, Decoding(max_tokens=2, temperature=0.0))
        assert decoder.prefix_bytes <= limit
    assert decoder.prefix_bytes > limit // 3
    assert one(decoder, prompts[-1]).prefilled.cached_tokens == 199
    assert one(decoder, prompts[0]).prefilled.cached_tokens == 0
    model.close()


def test_kept_prompts_outlive_the_model_where_that_is_asked(models: dict[str, Path], tmp_path: Path) -> None:
    options = EngineOptions(
        prefix_cache_bytes=8 << 20, artifacts=str(tmp_path), options={"persist_prefixes": True}
    )
    prompts = [words(100, 400), words(130, 401)]
    model = loaded(models["target"], options)
    answers = [one(decoder_of(model), prompt).tokens for prompt in prompts]
    model.close()
    model = loaded(models["target"], options)
    again = [one(decoder_of(model), prompt) for prompt in prompts]
    assert [answer.prefilled.cached_tokens for answer in again] == [99, 129]
    assert [answer.tokens for answer in again] == answers
    model.close()
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"damaged")
    model = loaded(models["target"], options)
    assert one(decoder_of(model), prompts[0]).tokens == answers[0]
    model.close()


def test_the_time_to_the_first_token_of_a_known_prompt_is_a_fraction(decoder: Decoder) -> None:
    """A cold prompt of 1,000 tokens against the same, known; the target of a fifth is measured in benchmarks."""

    def first_token_s(prompt: tuple[int, ...]) -> float:
        start = time.perf_counter()
        one(decoder, prompt, Decoding(max_tokens=1, temperature=0.0))
        return time.perf_counter() - start

    ratios: list[float] = []
    for seed in range(3):
        prompt = words(1000, 500 + seed)
        cold = first_token_s(prompt)
        ratios.append(first_token_s(prompt) / cold)
    assert min(ratios) < 0.5

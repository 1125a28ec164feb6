from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.contract.mlx.conftest import Load
from tests.contract.mlx.decoding import GREEDY, LIMITS, Answer, asked, decoder_of, finish, one, run
from tests.factories.language_models import edit_json, random_llama
from tests.factories.reference_llama import ReferenceLlama

from tokenweir.ports.inference import Decoder, Decoding, Drawn, LoadedModel, Prefilled, StepLimits

SAMPLED = Decoding(max_tokens=24, temperature=0.9)


def prompts(count: int, *, seed: int = 5, least: int = 1, most: int = 60) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(4, 380) for _ in range(draw.randint(least, most))) for _ in range(count)]


@pytest.fixture
def decoder(target: LoadedModel) -> Iterator[Decoder]:
    decoder = decoder_of(target)
    yield decoder
    assert not decoder.step(LIMITS)


def test_greedy_answers_are_those_of_a_reference_implementation(
    target: LoadedModel, models: dict[str, Path], decoder: Decoder
) -> None:
    reference = ReferenceLlama(models["target"])
    for prompt in prompts(3, most=40):
        assert one(decoder, prompt).tokens == reference.greedy(prompt, GREEDY.max_tokens)


def test_greedy_answers_in_a_batch_equal_those_by_themselves(decoder: Decoder) -> None:
    many = prompts(32)
    alone = [one(decoder, prompt).tokens for prompt in many[::4]]
    together = run(decoder, [asked(number, prompt) for number, prompt in enumerate(many)])
    assert [answer.tokens for answer in together[::4]] == alone


def test_sequences_that_join_and_leave_midway_do_not_change_the_others(decoder: Decoder) -> None:
    many = prompts(8, seed=8)
    lengths = [5 + 7 * (number % 4) for number in range(8)]
    decodings = [msgspec.structs.replace(GREEDY, max_tokens=length) for length in lengths]
    alone = [one(decoder, prompt, how).tokens for prompt, how in zip(many, decodings, strict=True)]
    decoder.insert([asked(number, many[number], decodings[number]) for number in range(4)])
    found: dict[int, Answer] = {number: Answer([]) for number in range(8)}
    for number in range(4, 8):
        for event in [*decoder.step(LIMITS), *decoder.step(LIMITS)]:
            found[event.sequence].events.append(event)
        decoder.insert([asked(number, many[number], decodings[number])])
    open_ = [number for number, answer in found.items() if not answer.finish]
    for number, answer in zip(open_, finish(decoder, open_), strict=True):
        found[number].events += answer.events
    assert [found[number].tokens for number in range(8)] == alone


def test_both_lanes_write_the_same_greedy_answer(decoder: Decoder) -> None:
    for prompt in prompts(2, seed=11):
        assert one(decoder, prompt, lane="exclusive").tokens == one(decoder, prompt).tokens


@pytest.mark.parametrize(("tokens", "together"), [(12, [20]), (40, [8, 8, 4])])
def test_prompts_that_make_one_piece_are_read_at_once_and_longer_ones_by_eights(
    decoder: Decoder, tokens: int, together: list[int]
) -> None:
    decoder.insert(
        [asked(number, each) for number, each in enumerate(prompts(20, seed=12, least=tokens, most=tokens))]
    )
    answered: set[int] = set()
    read: list[int] = []
    while len(answered) < 20:
        events = decoder.step(LIMITS)
        answered |= {event.sequence for event in events if isinstance(event, Drawn) and event.finish}
        read.append(sum(isinstance(event, Prefilled) for event in events))
    assert [count for count in read if count] == together


def test_a_long_prompt_is_read_in_pieces_while_others_answer(decoder: Decoder) -> None:
    (long,) = prompts(1, seed=13, least=900, most=900)
    alone = one(decoder, long, use_prefix_cache=False).tokens
    decoder.insert([asked(1, (5, 6, 7), msgspec.structs.replace(GREEDY, max_tokens=40))])
    limits = StepLimits(batch=8, prefill_tokens=100)
    for _ in range(4):
        decoder.step(limits)
    decoder.insert([asked(2, long)])
    between = 0
    while True:
        events = decoder.step(limits)
        if any(isinstance(event, Prefilled) and event.sequence == 2 for event in events):
            break
        between += sum(event.sequence == 1 for event in events)
    assert between >= 8
    decoder.remove([1])
    (answer,) = finish(decoder, [2])
    assert answer.tokens == alone


def test_the_batch_is_not_larger_than_its_limit(decoder: Decoder) -> None:
    decoder.insert([asked(number, (5, 6, 7)) for number in range(6)])
    limits = StepLimits(batch=2, prefill_tokens=64)
    said = [{event.sequence for event in decoder.step(limits)} for _ in range(10)]
    assert set().union(*said) == {0, 1}
    decoder.remove(range(6))


def test_a_length_is_exact_and_says_so(decoder: Decoder) -> None:
    answer = one(decoder, (9, 8, 7), Decoding(max_tokens=7, ignore_eos=True))
    assert (len(answer.tokens), answer.finish) == (7, "length")


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(load: Load, tmp_path: Path) -> None:
    directory = random_llama(tmp_path / "ends")
    reference = ReferenceLlama(directory)
    prompt = prompts(1, seed=21)[0]
    expected = reference.greedy(prompt, 24)
    stop = expected[5]
    edit_json(directory / "generation_config.json", eos_token_id=[0, stop])
    decoder = decoder_of(load(directory))
    for lane in ("batch", "exclusive"):
        answer = one(decoder, prompt, lane=lane)
        assert (answer.tokens, answer.finish) == (expected[: expected.index(stop)], "stop")
        assert answer.drawn[-1].token == -1
    on = msgspec.structs.replace(GREEDY, ignore_eos=True, max_tokens=len(expected))
    assert one(decoder, prompt, on).tokens == expected
    least = msgspec.structs.replace(GREEDY, min_tokens=expected.index(stop) + 3)
    assert len(one(decoder, prompt, least).tokens) >= least.min_tokens
    assert stop not in one(decoder, prompt, least).tokens[: least.min_tokens]


def test_removed_sequences_free_their_slots_and_say_nothing_more(decoder: Decoder) -> None:
    decoder.insert([asked(number, (5, 6, 7)) for number in range(4)])
    limits = StepLimits(batch=2, prefill_tokens=64)
    for _ in range(5):
        decoder.step(limits)
    decoder.remove([0, 1, 99])
    said = {event.sequence for _ in range(5) for event in decoder.step(limits)}
    assert said == {2, 3}
    decoder.remove([2, 3])


def test_a_removed_sequence_in_the_exclusive_lane_lets_the_next_one_in(decoder: Decoder) -> None:
    seeded = msgspec.structs.replace(SAMPLED, seed=1)
    decoder.insert([asked(1, (5, 6, 7), seeded), asked(2, (5, 6, 7), seeded)])
    said = {event.sequence for _ in range(4) for event in decoder.step(LIMITS)}
    assert said == {1}
    decoder.remove([1])
    assert finish(decoder, [2])[0].finish == "length"


@pytest.mark.parametrize("steps", [3, 25])
def test_a_held_sequence_waits_and_then_goes_on_as_if_nothing_had_been(decoder: Decoder, steps: int) -> None:
    many = prompts(3, seed=31)
    how = msgspec.structs.replace(GREEDY, max_tokens=40, frequency_penalty=0.3)
    alone = [one(decoder, prompt, how).tokens for prompt in many]
    decoder.insert([asked(number, prompt, how) for number, prompt in enumerate(many)])
    found = [Answer([]) for _ in many]
    for _ in range(6):
        for event in decoder.step(LIMITS):
            found[event.sequence].events.append(event)
    held = StepLimits(batch=32, prefill_tokens=256, held=frozenset({1}))
    for _ in range(steps):
        for event in decoder.step(held):
            assert event.sequence != 1
            found[event.sequence].events.append(event)
    for answer, more in zip(found, finish(decoder, [0, 1, 2]), strict=True):
        answer.events += more.events
    assert [answer.tokens for answer in found] == alone
    assert len([event for event in found[1].events if isinstance(event, Prefilled)]) == 1


def test_a_held_sequence_hands_on_one_token_per_step(decoder: Decoder) -> None:
    decoder.insert([asked(1, (5, 6, 7), msgspec.structs.replace(GREEDY, max_tokens=30))])
    for _ in range(12):
        decoder.step(StepLimits(batch=4, prefill_tokens=64, held=frozenset({1})))
    assert all(len(decoder.step(LIMITS)) <= 1 for _ in range(20))
    decoder.remove([1])


def test_a_held_sequence_may_be_removed(decoder: Decoder) -> None:
    decoder.insert([asked(1, (5, 6, 7))])
    for _ in range(20):
        decoder.step(StepLimits(batch=4, prefill_tokens=64, held=frozenset({1})))
    decoder.remove([1])


def test_logprobs_are_those_of_a_full_forward_pass(
    target: LoadedModel, models: dict[str, Path], decoder: Decoder
) -> None:
    reference = ReferenceLlama(models["target"])
    prompt = prompts(1, seed=17)[0]
    # An end that happens to be drawn is no token, and has no log probability.
    decoding = msgspec.structs.replace(SAMPLED, logprobs=4, ignore_eos=True)
    for lane in ("batch", "exclusive"):
        answer = one(decoder, prompt, decoding, lane=lane)
        rows = reference.logprobs([*prompt, *answer.tokens])[len(prompt) - 1 :]
        for event, row in zip(answer.drawn, rows, strict=False):
            assert event.logprob == pytest.approx(row[event.token], abs=2e-3)
            best = np.argsort(-row)[:4]
            assert [token for token, _ in event.alternatives] == list(best)
            assert [value for _, value in event.alternatives] == pytest.approx(list(row[best]), abs=2e-3)


def test_logprobs_are_there_only_where_asked(decoder: Decoder) -> None:
    answers = run(decoder, [asked(1, (5, 6)), asked(2, (5, 6), msgspec.structs.replace(GREEDY, logprobs=0))])
    assert all(event.logprob is None for event in answers[0].drawn)
    assert all(event.logprob is not None and not event.alternatives for event in answers[1].drawn)


def test_a_seed_gives_the_same_answer_whoever_else_is_served(decoder: Decoder) -> None:
    seeded = msgspec.structs.replace(SAMPLED, seed=7)
    alone = one(decoder, (5, 6, 7, 8), seeded).tokens
    others = [asked(number, prompt, SAMPLED) for number, prompt in enumerate(prompts(5, seed=3))]
    together = run(decoder, [*others, asked(50, (5, 6, 7, 8), seeded)])[-1]
    assert together.tokens == alone
    assert one(decoder, (5, 6, 7, 8), msgspec.structs.replace(seeded, seed=8)).tokens != alone


def test_sampling_follows_the_distribution(
    target: LoadedModel, models: dict[str, Path], decoder: Decoder
) -> None:
    prompt = (9, 80, 31, 7)
    row = ReferenceLlama(models["target"]).logprobs(list(prompt))[-1]
    how = Decoding(max_tokens=1, temperature=0.7, ignore_eos=True)
    drawn = [
        answer.tokens[0] for answer in run(decoder, [asked(number, prompt, how) for number in range(400)])
    ]
    chances = np.exp(row / 0.7)
    chances /= chances.sum()
    top = int(np.argmax(chances))
    spread = math.sqrt(chances[top] * (1 - chances[top]) / 400)
    assert abs(drawn.count(top) / 400 - chances[top]) < 5 * spread


@pytest.mark.parametrize("lane", ["batch", "exclusive"])
def test_narrowed_sampling_keeps_to_what_it_leaves(
    decoder: Decoder, models: dict[str, Path], lane: str
) -> None:
    prompt = (9, 80, 31, 7)
    row = ReferenceLlama(models["target"]).logprobs(list(prompt))[-1]
    order = list(np.argsort(-row))
    for how, allowed in (
        (Decoding(max_tokens=1, top_k=3), set(order[:3])),
        (
            Decoding(max_tokens=1, min_p=0.5),
            {token for token in order if row[token] > row[order[0]] + np.log(0.5) - 1e-3},
        ),
        (
            Decoding(max_tokens=1, top_p=0.4),
            set(order[: int(np.searchsorted(np.cumsum(np.exp(row[order])), 0.4)) + 1]),
        ),
    ):
        several = [one(decoder, prompt, how, lane=lane).tokens for _ in range(12)]
        assert {token for tokens in several for token in tokens} <= allowed


@pytest.mark.parametrize("lane", ["batch", "exclusive"])
def test_penalties_and_bias_change_logits_as_they_are_defined(
    decoder: Decoder, models: dict[str, Path], lane: str
) -> None:
    reference = ReferenceLlama(models["target"])
    prompt = prompts(1, seed=23)[0]
    how = msgspec.structs.replace(
        GREEDY,
        repetition_penalty=1.3,
        presence_penalty=0.7,
        frequency_penalty=0.4,
        logit_bias={int(reference.greedy(prompt, 1)[0]): -100.0, 77: 2.5},
    )
    tokens = list(prompt)
    for _ in range(how.max_tokens):
        logits = reference.logits(tokens)[-1]
        for token, bias in how.logit_bias.items():
            logits[token] += bias
        for token in set(tokens):
            logits[token] = logits[token] / 1.3 if logits[token] > 0 else logits[token] * 1.3
        for token in set(tokens[len(prompt) :]):
            logits[token] -= 0.7 + 0.4 * tokens[len(prompt) :].count(token)
        tokens.append(int(np.argmax(logits)))
    assert one(decoder, prompt, how, lane=lane).tokens == tokens[len(prompt) :]


def test_options_of_one_row_do_not_reach_another(decoder: Decoder) -> None:
    many = prompts(4, seed=29)
    alone = [one(decoder, prompt).tokens for prompt in many]
    odd = Decoding(max_tokens=24, temperature=3.0, logit_bias={5: 100.0}, frequency_penalty=2, logprobs=3)
    mixed = [asked(number, prompt) for number, prompt in enumerate(many)]
    mixed[2:2] = [asked(50, many[0], odd)]
    answers = run(decoder, mixed)
    assert [answer.tokens for answer in (*answers[:2], *answers[3:])] == alone


@pytest.mark.parametrize(
    ("tokens", "decoding", "said"),
    [
        ((), GREEDY, "no tokens"),
        ((5, 100_000), GREEDY, "token 100000 is not in the vocabulary"),
        ((5,), Decoding(max_tokens=0), "max_tokens is 0"),
        ((5,), Decoding(max_tokens=5000), "more than the context's 2048"),
        ((5,), Decoding(max_tokens=5, use_draft=True), "without a draft model"),
        ((5,), Decoding(max_tokens=5, logit_bias={9999: 1.0}), "logit_bias names token 9999"),
    ],
)
def test_what_cannot_be_decoded_breaks_by_itself(
    decoder: Decoder, tokens: tuple[int, ...], decoding: Decoding, said: str
) -> None:
    bad, good = run(decoder, [asked(1, tokens, decoding), asked(2, (5, 6))])
    assert bad.broken.code == "bad_input"
    assert said in bad.broken.message
    assert good.finish


def test_images_are_refused_by_a_model_that_does_not_see(decoder: Decoder) -> None:
    assert "does not see" in one(decoder, (5, 6), images=(b"x",)).broken.message

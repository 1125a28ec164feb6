"""How sequences are decoded together."""

from __future__ import annotations

import gc
import itertools

import pytest
from tests.contract.inference_engine_run import (
    MOST_STEPS,
    EngineTests,
    Run,
    Subject,
    answer_alone,
    is_end,
    long_prompt,
    some_prompts,
    task,
)

from tokenweir.ports.inference import (
    Decoder,
    Drawn,
    LoadedModel,
    Prefilled,
    StepLimits,
)


class DecodingContract(EngineTests):
    """Batches, lanes, places, ends."""

    def test_a_greedy_answer_is_the_same_alone_and_in_a_batch(
        self, model: LoadedModel, decoder: Decoder
    ) -> None:
        prompts = some_prompts(model)
        alone = [answer_alone(decoder, number, prompt) for number, prompt in enumerate(prompts)]
        run = Run(decoder)
        decoder.insert([task(100 + number, prompt) for number, prompt in enumerate(prompts)])
        run.finish(*range(100, 100 + len(prompts)))
        assert [run.tokens(100 + number) for number in range(len(prompts))] == alone

    def test_sequences_join_and_leave_while_others_go_on(self, model: LoadedModel, decoder: Decoder) -> None:
        prompts = some_prompts(model)
        alone = [answer_alone(decoder, number, prompt) for number, prompt in enumerate(prompts)]
        run = Run(decoder)
        for number, prompt in enumerate(prompts):
            decoder.insert([task(100 + number, prompt)])
            run.step()
            run.step()
            if number == 3:
                decoder.remove([101])
        run.finish(*(100 + number for number in range(len(prompts)) if number != 1))
        for number in range(len(prompts)):
            if number != 1:
                assert run.tokens(100 + number) == alone[number]

    def test_a_prompt_read_in_pieces_gives_the_same_answer(
        self, model: LoadedModel, decoder: Decoder
    ) -> None:
        prompt = some_prompts(model)[3]
        expected = answer_alone(decoder, 1, prompt, use_prefix_cache=False)
        run = Run(decoder)
        decoder.insert([task(2, prompt, use_prefix_cache=False)])
        run.finish(2, limits=StepLimits(batch=4, prefill_tokens=8))
        assert run.tokens(2) == expected

    def test_every_sequence_has_one_prefill_and_one_end(self, model: LoadedModel, decoder: Decoder) -> None:
        run = Run(decoder)
        prompts = some_prompts(model)
        decoder.insert([task(number, prompt) for number, prompt in enumerate(prompts)])
        run.finish(*range(len(prompts)))
        for _ in range(3):
            assert list(run.step()) == []
        for number, prompt in enumerate(prompts):
            events = run.events[number]
            assert sum(map(is_end, events)) == 1
            assert is_end(events[-1])
            first = events[0]
            assert isinstance(first, Prefilled)
            assert first.prompt_tokens == len(prompt)
            assert sum(isinstance(event, Prefilled) for event in events) == 1

    def test_an_answer_is_as_long_as_it_may_be(self, model: LoadedModel, decoder: Decoder) -> None:
        run = Run(decoder)
        decoder.insert([task(1, some_prompts(model)[0], max_tokens=7, ignore_eos=True)])
        decoder.insert([task(2, some_prompts(model)[1], max_tokens=1, ignore_eos=True)])
        run.finish(1, 2)
        assert [len(run.tokens(1)), len(run.tokens(2))] == [7, 1]
        assert [run.drawn(1)[-1].finish, run.drawn(2)[-1].finish] == ["length", "length"]

    def test_min_tokens_keeps_the_end_away(self, model: LoadedModel, decoder: Decoder) -> None:
        run = Run(decoder)
        prompts = some_prompts(model)
        decoder.insert(
            [task(number, prompt, max_tokens=90, min_tokens=80) for number, prompt in enumerate(prompts)]
        )
        run.finish(*range(len(prompts)))
        assert all(80 <= len(run.tokens(number)) <= 90 for number in range(len(prompts)))

    def test_a_removed_sequence_frees_its_place(self, model: LoadedModel, decoder: Decoder) -> None:
        prompts = some_prompts(model)
        run = Run(decoder)
        narrow = StepLimits(batch=2, prefill_tokens=256)
        decoder.insert([task(number, prompts[number], max_tokens=1000, ignore_eos=True) for number in (0, 1)])
        for _ in range(4):
            run.step(narrow)
        decoder.insert([task(2, prompts[2], max_tokens=6, ignore_eos=True)])
        decoder.remove([0, 1, 77])
        before = [len(run.events[number]) for number in (0, 1)]
        run.finish(2, limits=narrow)
        assert [len(run.events[number]) for number in (0, 1)] == before
        assert len(run.tokens(2)) == 6

    def test_removing_gives_the_cache_back(
        self, subject: Subject, model: LoadedModel, decoder: Decoder
    ) -> None:
        prompt = long_prompt(model)
        run = Run(decoder)
        numbers = range(8)
        tasks = [
            task(number, prompt, max_tokens=100, ignore_eos=True, use_prefix_cache=False)
            for number in numbers
        ]
        decoder.insert(tasks[:1])
        run.finish(0)
        gc.collect()
        before = subject.engine.memory().active_bytes
        decoder.insert(tasks[1:])
        while len(run.tokens(7)) < 4:
            run.step()
        during = subject.engine.memory().active_bytes
        decoder.remove(list(numbers))
        run.step()
        gc.collect()
        after = subject.engine.memory().active_bytes
        assert during > before
        assert after - before < (during - before) / 4

    def test_a_held_sequence_waits_and_loses_nothing(self, model: LoadedModel, decoder: Decoder) -> None:
        prompts = some_prompts(model)[:3]
        expected = [
            answer_alone(decoder, number, prompt, max_tokens=30) for number, prompt in enumerate(prompts)
        ]
        run = Run(decoder)
        decoder.insert([task(100 + number, prompt, max_tokens=30) for number, prompt in enumerate(prompts)])
        while len(run.tokens(101)) < 3:
            run.step()
        held = StepLimits(batch=64, prefill_tokens=256, held=frozenset({101}))
        before = len(run.events[101])
        run.finish(100, 102, limits=held)
        for _ in range(5):
            run.step(held)
        assert len(run.events[101]) == before
        run.finish(101)
        assert [run.tokens(100 + number) for number in range(3)] == expected

    def test_sequences_are_held_and_let_go_in_turn(self, model: LoadedModel, decoder: Decoder) -> None:
        prompts = some_prompts(model)[:4]
        expected = [
            answer_alone(decoder, number, prompt, max_tokens=24) for number, prompt in enumerate(prompts)
        ]
        run = Run(decoder)
        numbers = range(100, 104)
        decoder.insert([task(100 + number, prompt, max_tokens=24) for number, prompt in enumerate(prompts)])
        turns = itertools.cycle([{100}, {101, 102}, set[int](), {103}, {100, 101, 102, 103}])
        for held in itertools.islice(turns, 400):
            run.step(StepLimits(batch=64, prefill_tokens=256, held=frozenset(held)))
            if all(run.ended(number) for number in numbers):
                break
        assert [run.tokens(number) for number in numbers] == expected

    def test_the_batch_is_no_larger_than_it_may_be(self, model: LoadedModel, decoder: Decoder) -> None:
        run = Run(decoder)
        prompts = some_prompts(model)
        decoder.insert([task(number, prompt, max_tokens=6) for number, prompt in enumerate(prompts)])
        narrow = StepLimits(batch=2, prefill_tokens=256)
        for _ in range(MOST_STEPS):
            events = run.step(narrow)
            assert len({event.sequence for event in events if isinstance(event, Drawn)}) <= 2
            if all(run.ended(number) for number in range(len(prompts))):
                return
        pytest.fail("not all ended")

"""How tokens are drawn and guided."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import msgspec
import pytest
from tests.contract.inference_engine_run import (
    SCHEMA,
    EngineTests,
    Run,
    answer_alone,
    require,
    some_prompts,
    task,
    text_of,
)

from tokenweir.core.errors import GuidanceError
from tokenweir.ports.inference import (
    Broken,
    Decoder,
    Guidance,
    GuidanceChecker,
    LoadedModel,
)


class DrawingContract(EngineTests):
    """Sampling, log probabilities, seeds, drafts, guidance."""

    def test_log_probabilities_are_told_for_every_token(self, model: LoadedModel, decoder: Decoder) -> None:
        require(model, "logprobs")
        prompt = some_prompts(model)[0]
        plain = answer_alone(decoder, 1, prompt)
        run = Run(decoder)
        decoder.insert([task(2, prompt, logprobs=4), task(3, prompt, logprobs=0), task(4, prompt)])
        run.finish(2, 3, 4)
        assert run.tokens(2) == run.tokens(3) == run.tokens(4) == plain
        for event in run.drawn(2):
            if event.token < 0:
                continue
            assert event.logprob is not None
            assert event.logprob <= 1e-4
            values = [logprob for _, logprob in event.alternatives]
            assert len(values) == 4
            assert values == sorted(values, reverse=True)
            assert event.alternatives[0][0] == event.token
            assert math.isclose(values[0], event.logprob, abs_tol=1e-3)
            assert sum(map(math.exp, values)) <= 1.001
        assert all(event.alternatives == () for event in run.drawn(3))
        assert all(event.logprob is not None for event in run.drawn(3) if event.token >= 0)
        assert all(event.logprob is None for event in run.drawn(4))

    def test_a_bias_forbids_and_forces(self, model: LoadedModel, decoder: Decoder) -> None:
        prompt = some_prompts(model)[0]
        first = answer_alone(decoder, 1, prompt, max_tokens=1, ignore_eos=True)[0]
        other = (first + 1) % model.card.vocabulary
        run = Run(decoder)
        decoder.insert(
            [
                task(2, prompt, max_tokens=8, ignore_eos=True, logit_bias={first: -100.0}),
                task(3, prompt, max_tokens=3, ignore_eos=True, logit_bias={other: 100.0}),
            ]
        )
        run.finish(2, 3)
        assert first not in run.tokens(2)
        assert run.tokens(3) == [other] * 3

    def test_penalties_keep_tokens_from_coming_again(self, model: LoadedModel, decoder: Decoder) -> None:
        prompt = some_prompts(model)[0]
        run = Run(decoder)
        decoder.insert(
            [
                task(1, prompt, max_tokens=24, ignore_eos=True, presence_penalty=100.0),
                task(2, prompt, max_tokens=24, ignore_eos=True, frequency_penalty=100.0),
                task(3, prompt, max_tokens=24, ignore_eos=True, repetition_penalty=1.3),
            ]
        )
        run.finish(1, 2, 3)
        for number in (1, 2):
            # A bonus or penalty counts what the answer holds, perhaps only the latest part of it.
            recent = run.tokens(number)[:16]
            assert len(set(recent)) == len(recent)
        assert len(run.tokens(3)) == 24

    def test_narrow_sampling_is_greedy(self, model: LoadedModel, decoder: Decoder) -> None:
        prompt = some_prompts(model)[2]
        expected = answer_alone(decoder, 1, prompt, max_tokens=16)
        run = Run(decoder)
        hot: dict[str, Any] = {"temperature": 1.5, "max_tokens": 16}
        decoder.insert(
            [
                task(2, prompt, top_k=1, **hot),
                task(3, prompt, top_p=1e-6, **hot),
                task(4, prompt, min_p=1.0, **hot),
            ]
        )
        run.finish(2, 3, 4)
        assert run.tokens(2) == run.tokens(3) == run.tokens(4) == expected

    def test_a_seed_repeats_an_answer(self, model: LoadedModel, decoder: Decoder) -> None:
        require(model, "seed")
        run = Run(decoder)
        prompt = some_prompts(model)[0]
        decoder.insert(
            [
                task(
                    number,
                    prompt,
                    lane="exclusive",
                    temperature=1.5,
                    seed=seed,
                    max_tokens=24,
                    ignore_eos=True,
                )
                for number, seed in ((1, 5), (2, 6), (3, 5))
            ]
        )
        run.finish(1, 2, 3)
        assert run.tokens(1) == run.tokens(3)
        assert run.tokens(1) != run.tokens(2)

    def test_a_draft_model_changes_no_greedy_answer(self, model: LoadedModel, decoder: Decoder) -> None:
        if model.card.draft is None:
            pytest.skip("loaded without a draft model")
        prompt = some_prompts(model)[1]
        expected = answer_alone(decoder, 1, prompt, max_tokens=30)
        run = Run(decoder)
        decoder.insert([task(2, prompt, lane="exclusive", use_draft=True, draft_tokens=3, max_tokens=30)])
        run.finish(2)
        assert run.tokens(2) == expected
        taken = sum(event.drafted for event in run.drawn(2))
        assert taken <= sum(event.proposed for event in run.drawn(2))
        assert any(event.proposed for event in run.drawn(2))

    def test_a_quantised_cache_answers(self, model: LoadedModel, decoder: Decoder) -> None:
        require(model, "quantised_kv")
        run = Run(decoder)
        decoder.insert(
            [task(1, some_prompts(model)[0], lane="exclusive", kv_bits=8, max_tokens=8, ignore_eos=True)]
        )
        run.finish(1)
        assert len(run.tokens(1)) == 8

    def test_both_lanes_advance(self, model: LoadedModel, decoder: Decoder) -> None:
        require(model, "seed")
        run = Run(decoder)
        prompt = some_prompts(model)[0]
        decoder.insert(
            [
                task(1, prompt, max_tokens=1000, ignore_eos=True),
                task(2, prompt, lane="exclusive", temperature=1.0, seed=1, max_tokens=10, ignore_eos=True),
                task(3, prompt, lane="exclusive", temperature=1.0, seed=1, max_tokens=10, ignore_eos=True),
            ]
        )
        run.finish(2, 3)
        assert len(run.tokens(1)) > 3
        assert run.tokens(2) == run.tokens(3)
        decoder.remove([1])

    def test_guided_answers_match_their_schema_in_every_slot(
        self, model: LoadedModel, decoder: Decoder
    ) -> None:
        require(model, "guidance")
        run = Run(decoder)
        guidance = Guidance(kind="json_schema", value=json.dumps(SCHEMA))
        prompts = some_prompts(model)
        guided = range(32)
        decoder.insert(
            [
                task(number, prompts[number % 8], guidance=guidance, temperature=1.0, max_tokens=400)
                for number in guided
            ]
        )
        decoder.insert([task(100, prompts[0], max_tokens=40)])
        run.finish(*guided, 100)
        for number in guided:
            assert run.drawn(number)[-1].finish == "stop"
            jsonschema.validate(json.loads(text_of(model, run.tokens(number))), SCHEMA)
        assert run.tokens(100) == answer_alone(decoder, 200, prompts[0], max_tokens=40)

    @pytest.mark.parametrize(
        ("kind", "value", "allowed"),
        [
            ("choice", '["rain", "sun and wind"]', {"rain", "sun and wind"}),
            ("regex", "(yes|no)", {"yes", "no"}),
            ("grammar", 'start: "left" | "right"', {"left", "right"}),
        ],
    )
    def test_guided_answers_are_of_each_kind(
        self, model: LoadedModel, decoder: Decoder, kind: str, value: str, allowed: set[str]
    ) -> None:
        require(model, "guidance")
        run = Run(decoder)
        guidance = msgspec.convert({"kind": kind, "value": value}, Guidance)
        decoder.insert(
            [task(number, prompt, guidance=guidance) for number, prompt in enumerate(some_prompts(model))]
        )
        run.finish(*range(8))
        assert {text_of(model, run.tokens(number)) for number in range(8)} <= allowed

    def test_what_cannot_guide_breaks_its_own_sequence_alone(
        self, model: LoadedModel, decoder: Decoder
    ) -> None:
        require(model, "guidance")
        prompt = some_prompts(model)[0]
        bad = Guidance(kind="regex", value="(((")
        if isinstance(model, GuidanceChecker):
            with pytest.raises(GuidanceError):
                model.check_guidance(bad)
        run = Run(decoder)
        decoder.insert([task(1, prompt, guidance=bad), task(2, prompt, max_tokens=5, ignore_eos=True)])
        run.finish(1, 2)
        (broken,) = run.events[1]
        assert isinstance(broken, Broken)
        assert broken.code == "guidance"
        assert len(run.tokens(2)) == 5

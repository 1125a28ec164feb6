"""What a loaded model is and takes: its text, kept prompts, vectors and memory."""

from __future__ import annotations

import gc
import math

import pytest
from tests.contract.inference_engine_run import (
    LIMITS,
    TEXTS,
    EngineTests,
    Run,
    Subject,
    answer_alone,
    cached_tokens,
    long_prompt,
    require,
    some_prompts,
    task,
)

from tokenweir.core.requests import Message
from tokenweir.ports.inference import (
    Decoder,
    LoadedModel,
)


class ModelContract(EngineTests):
    """Card, text, kept prompts, vectors, memory."""

    def test_the_card_says_what_was_loaded(self, subject: Subject, model: LoadedModel) -> None:
        assert model.card.name == subject.spec.name
        assert model.card.path == subject.spec.path
        assert 0 < model.card.context_tokens <= subject.card.context_tokens
        assert (model.decoder is not None) == bool({"chat", "completion"} & set(model.card.capabilities))
        assert (model.embedder is not None) == ("embedding" in model.card.capabilities)
        assert (model.tool_calls is not None) >= ("tools" in model.card.capabilities)

    def test_text_comes_back_from_its_tokens(self, model: LoadedModel) -> None:
        for text in TEXTS:
            tokens = list(model.format.encode(text, special=False))
            detokenizer = model.format.detokenizer()
            told = "".join(map(detokenizer.add, tokens)) + detokenizer.finish()
            assert told == text
            assert all(0 <= token < model.card.vocabulary for token in tokens)

    def test_a_conversation_becomes_a_prompt(self, model: LoadedModel) -> None:
        require(model, "chat")
        turns = (Message(role="user", content="What flows?"), Message(role="assistant", content="Water."))
        first = model.format.render(turns[:1], (), {})
        both = model.format.render((*turns, turns[0]), (), {})
        assert "What flows?" in first
        assert "Water." in both
        assert len(both) > len(first)

    def test_a_prompt_seen_before_is_not_read_again(self, model: LoadedModel, decoder: Decoder) -> None:
        prompt = long_prompt(model)
        run = Run(decoder)
        decoder.insert([task(1, prompt, max_tokens=12)])
        run.finish(1)
        decoder.insert([task(2, prompt, max_tokens=12), task(3, [*prompt, prompt[0]], max_tokens=12)])
        run.finish(2, 3)
        assert run.tokens(1) == run.tokens(2)
        assert cached_tokens(run, 1) == 0
        assert len(prompt) // 2 < cached_tokens(run, 2) < len(prompt)
        assert len(prompt) // 2 < cached_tokens(run, 3) <= len(prompt)
        decoder.insert(
            [
                task(4, prompt, max_tokens=12, use_prefix_cache=False),
                task(5, [*prompt, prompt[0]], max_tokens=12, use_prefix_cache=False),
            ]
        )
        run.finish(4, 5)
        assert (cached_tokens(run, 4), cached_tokens(run, 5)) == (0, 0)
        assert run.tokens(4) == run.tokens(1)
        assert run.tokens(5) == run.tokens(3)

    def test_a_prompt_may_be_kept_out(self, model: LoadedModel, decoder: Decoder) -> None:
        prompt = long_prompt(model)
        run = Run(decoder)
        decoder.insert([task(1, prompt, max_tokens=2, use_prefix_cache=False)])
        run.finish(1)
        decoder.insert([task(2, prompt, max_tokens=2)])
        run.finish(2)
        assert cached_tokens(run, 2) == 0

    def test_vectors_have_unit_length_and_do_not_depend_on_their_neighbours(self, model: LoadedModel) -> None:
        require(model, "embedding")
        if model.embedder is None:
            pytest.fail("the card promises embeddings")
        inputs = [list(model.format.encode(text)) for text in TEXTS]
        vectors = model.embedder.embed(inputs)
        assert len(vectors) == len(inputs)
        for tokens, vector in zip(inputs, vectors, strict=True):
            assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-3)
            alone = model.embedder.embed([tokens])[0]
            assert all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(vector, alone, strict=True))

    def test_unloading_returns_the_memory(self, subject: Subject) -> None:
        taken: list[int] = []
        for _ in range(4):
            model = subject.engine.load(subject.spec, subject.card)
            if model.decoder is not None:
                answer_alone(model.decoder, 1, some_prompts(model)[0], max_tokens=8)
            loaded = subject.engine.memory().active_bytes
            model.close()
            del model
            gc.collect()
            after = subject.engine.memory()
            taken.append(after.active_bytes)
            assert after.active_bytes + subject.card.weights_bytes // 2 <= loaded
            assert after.limit_bytes > 0
        assert max(taken) - min(taken) <= max(4096, subject.card.weights_bytes // 50)

    def test_closing_with_sequences_on_the_way_returns_the_memory(self, subject: Subject) -> None:
        before = subject.engine.memory().active_bytes
        model = subject.engine.load(subject.spec, subject.card)
        if model.decoder is not None:
            model.decoder.insert([task(1, long_prompt(model), max_tokens=500, ignore_eos=True)])
            for _ in range(8):
                model.decoder.step(LIMITS)
        model.close()
        del model
        gc.collect()
        assert subject.engine.memory().active_bytes - before <= max(4096, subject.card.weights_bytes // 50)

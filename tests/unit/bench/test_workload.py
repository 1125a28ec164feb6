from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.bench.corpora import Corpus, load_corpus
from tokenweir.bench.tokenizers import EstimateTokenizer
from tokenweir.bench.workload import (
    DEFAULT_MAX_TOKENS,
    MAX_COUNTED_CHARACTERS,
    Asking,
    Workload,
)
from tokenweir.core.corpus import Sample
from tokenweir.core.requests import Kind, Message, Sampling

TALK = Sample(
    id="t",
    messages=(
        Message(role="system", content="be brief"),
        Message(role="user", content="q1"),
        Message(role="assistant", content="a1"),
        Message(role="user", content="q2"),
    ),
    expected="x" * 40,
)
PROMPT = Sample(id="p", prompt="why?", max_tokens=50)


def _workload(
    *samples: Sample,
    kind: Kind = "chat",
    max_tokens: int | None = None,
    unique: bool = False,
    shuffled: bool = True,
    replies: bool = False,
) -> Workload:
    asking = Asking(
        kind=kind,
        model="m",
        sampling=Sampling(max_tokens=max_tokens, temperature=0.5),
        unique_prompts=unique,
        shuffled=shuffled,
    )
    return Workload(Corpus("c", samples or (PROMPT,), sized_by_replies=replies), asking, EstimateTokenizer())


def _many(count: int, *, shuffled: bool = True) -> Workload:
    return _workload(*(Sample(id=str(index), prompt="x") for index in range(count)), shuffled=shuffled)


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 2**32), st.integers(0, 3))
def test_every_sample_comes_once_before_any_comes_again(size: int, n: int, seed: int, load: int) -> None:
    order = _many(size).order(n, seed, load)
    assert order.sample.dtype == order.repeat.dtype == np.int32
    assert order.sample.size == order.repeat.size == n
    for start in range(0, n, size):
        cycle = order.sample[start : start + size]
        assert len(set(cycle.tolist())) == cycle.size
        assert set(order.repeat[start : start + size].tolist()) == {start // size}


@given(st.integers(1, 40), st.integers(0, 100), st.integers(0, 100), st.integers(0, 2**32))
def test_a_shorter_order_begins_a_longer_one(size: int, n: int, more: int, seed: int) -> None:
    short, long = _many(size).order(n, seed, 0), _many(size).order(n + more, seed, 0)
    assert long.sample[:n].tolist() == short.sample.tolist()


def test_seed_and_load_change_the_order() -> None:
    workload = _many(50)
    orders = [workload.order(50, *key).sample.tolist() for key in ((1, 0), (2, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 3
    assert workload.order(50, 1, 0).sample.tolist() == orders[0]


def test_order_can_be_kept() -> None:
    order = _many(3, shuffled=False).order(7, 1, 0)
    assert order.sample.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert order.repeat.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_chat_asks_messages() -> None:
    workload = _workload(PROMPT, TALK)
    assert workload.request(0, 0).messages == (Message(role="user", content="why?"),)
    asked = workload.request(1, 0)
    assert asked.messages == TALK.messages
    assert (asked.kind, asked.model, asked.stream, asked.sampling.temperature) == ("chat", "m", True, 0.5)


def test_completion_asks_text() -> None:
    workload = _workload(PROMPT, TALK, kind="completion")
    assert workload.request(0, 0).prompt == "why?"
    assert workload.request(1, 0).prompt == "System: be brief\nUser: q1\nAssistant: a1\nUser: q2\nAssistant:"


def test_embedding_asks_inputs_without_stream() -> None:
    workload = _workload(PROMPT, TALK, kind="embedding")
    asked = workload.request(1, 0)
    assert asked.inputs == ("be brief\nq1\na1\nq2",)
    assert not asked.stream
    assert workload.output_tokens(0) is None


@pytest.mark.parametrize(
    ("own", "cap", "bound"),
    [(50, None, 50), (50, 20, 20), (50, 80, 50), (None, 20, 20), (None, None, DEFAULT_MAX_TOKENS)],
)
def test_the_smaller_of_sample_and_user_bounds_the_answer(
    own: int | None, cap: int | None, bound: int
) -> None:
    workload = _workload(Sample(id="a", prompt="x", max_tokens=own), max_tokens=cap)
    assert workload.request(0, 0).sampling.max_tokens == bound


def test_recorded_conversations_are_answered_at_the_length_of_their_reply() -> None:
    assert _workload(TALK, replies=True).output_tokens(0) == 10
    assert _workload(TALK, replies=True, max_tokens=4).output_tokens(0) == 4
    assert _workload(TALK).output_tokens(0) == DEFAULT_MAX_TOKENS


@pytest.mark.parametrize("kind", ["chat", "completion", "embedding"])
def test_unique_prompts_differ_from_their_first_token(kind: Kind) -> None:
    parts = Sample(id="i", messages=(Message(role="user", content=({"type": "text", "text": "see"},)),))
    workload = _workload(PROMPT, TALK, parts, kind=kind, unique=True)
    asked = [
        workload.request(sample, repeat, load)
        for sample in range(3)
        for repeat in range(2)
        for load in range(2)
    ]
    begins = {
        str(request.messages[0].content if request.messages else request.prompt or request.inputs[0])[:40]
        for request in asked
    }
    assert len(begins) == 12
    assert workload.request(0, 1, 1) == workload.request(0, 1, 1)


def test_plain_prompts_are_alike_whatever_their_repeat() -> None:
    workload = _workload(PROMPT)
    assert workload.request(0, 0) == workload.request(0, 5, 2)


def test_input_tokens_are_counted_known_or_left_to_the_server() -> None:
    assert _workload(PROMPT, TALK).input_tokens.tolist() == [1, 5]
    known = Corpus("c", (PROMPT,), input_tokens=np.array([9], dtype=np.int32))
    assert Workload(known, Asking(kind="chat", model="m"), EstimateTokenizer()).input_tokens.tolist() == [9]
    huge = _workload(Sample(id="h", prompt="x" * (MAX_COUNTED_CHARACTERS + 1)))
    assert huge.input_tokens.tolist() == [-1]


def test_the_shipped_corpus_can_be_asked_in_every_way() -> None:
    for kind in ("chat", "completion", "embedding"):
        workload = Workload(load_corpus("weir-mix"), Asking(kind=kind, model="m"), EstimateTokenizer())
        assert {workload.request(index, 0).kind for index in range(len(workload))} == {kind}

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ParameterError, ProtocolError
from tokenweir.core.events import (
    Accepted,
    Cancelled,
    Completed,
    Degraded,
    Event,
    Failed,
    Queued,
    Started,
    Token,
    TokenLogprob,
    Usage,
)
from tokenweir.core.requests import GenerateRequest, Message, Sampling, Tool, ToolCall
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.rpc_door.options import from_options
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.events import from_event, to_event
from tokenweir.wire.v1.requests import from_request, to_request

ROOT = Path(__file__).parents[3]

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
COUNTS = st.none() | st.integers(0, 2**32 - 1)
NUMBERS = st.floats(allow_nan=False)
CALLS = st.builds(ToolCall, index=st.integers(0, 99), id=TEXTS, name=TEXTS, arguments=TEXTS)
LOGPROBS = st.builds(
    TokenLogprob, token=TEXTS, logprob=NUMBERS, top=st.lists(st.tuples(TEXTS, NUMBERS), max_size=3).map(tuple)
)
JSON = st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS, max_size=3)
SEQ = st.integers(0, 2**63)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Accepted, seq=SEQ, request_id=TEXTS),
    st.builds(Queued, seq=SEQ),
    st.builds(Started, seq=SEQ, attempt=st.integers(0, 99), upstream_id=TEXTS, model=TEXTS),
    st.builds(
        Token,
        seq=SEQ,
        text=TEXTS,
        reasoning=TEXTS,
        tool_calls=st.lists(CALLS, max_size=3).map(tuple),
        count=COUNTS,
        index=st.integers(0, 99),
        sent_ns=st.none() | SEQ,
        logprobs=st.lists(LOGPROBS, max_size=3).map(tuple),
    ),
    st.builds(
        Usage,
        seq=SEQ,
        input_tokens=COUNTS,
        output_tokens=COUNTS,
        cached_tokens=COUNTS,
        reasoning_tokens=COUNTS,
        recompiles=COUNTS,
        drafted_tokens=COUNTS,
        accepted_tokens=COUNTS,
        source=st.sampled_from(["server", "tokenizer", "estimate"]),
        timings_ns=st.dictionaries(TEXTS, st.integers(0, 2**63), max_size=3),
    ),
    st.builds(Degraded, seq=SEQ, what=TEXTS),
    st.builds(Completed, seq=SEQ, finish_reason=TEXTS, data=JSON),
    st.builds(
        Failed,
        seq=SEQ,
        kind=TEXTS,
        message=TEXTS,
        status=st.none() | st.integers(400, 599),
        retryable=st.booleans(),
        retry_after_ns=st.none() | SEQ,
    ),
    st.builds(Cancelled, seq=SEQ),
)
SAMPLING = st.builds(
    Sampling,
    max_tokens=COUNTS,
    min_tokens=COUNTS,
    temperature=st.none() | NUMBERS,
    top_p=st.none() | NUMBERS,
    top_k=COUNTS,
    presence_penalty=st.none() | NUMBERS,
    frequency_penalty=st.none() | NUMBERS,
    stop=st.lists(TEXTS, max_size=3).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    n=st.integers(1, 64),
    ignore_eos=st.booleans(),
    logprobs=COUNTS,
)
MESSAGES = st.builds(
    Message,
    role=TEXTS,
    content=st.none() | TEXTS | st.lists(JSON, max_size=2).map(tuple),
    name=st.none() | TEXTS,
    tool_calls=st.lists(CALLS, max_size=2).map(tuple),
    tool_call_id=st.none() | TEXTS,
)
TOOLS = st.builds(Tool, name=TEXTS, description=TEXTS, parameters=JSON)


@given(EVENTS)
def test_every_event_survives_the_wire(event: Event) -> None:
    assert from_event(pb.Event.FromString(to_event(event).SerializeToString())) == event


def test_every_kind_of_event_has_a_message() -> None:
    names = {kind.__struct_config__.tag for kind in get_args(Event)}
    assert names == {field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["event"].fields}


@given(
    st.builds(
        GenerateRequest,
        kind=st.just("chat"),
        model=TEXTS,
        messages=st.lists(MESSAGES, max_size=3).map(tuple),
        sampling=SAMPLING,
        tools=st.lists(TOOLS, max_size=2).map(tuple),
        tool_choice=st.none() | st.just("auto") | st.just({"type": "function"}),
        response_format=st.none() | JSON,
        extra=JSON,
    )
    | st.builds(
        GenerateRequest,
        kind=st.just("completion"),
        model=TEXTS,
        prompt=TEXTS | st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple),
        sampling=SAMPLING,
    )
)
def test_every_request_survives_the_wire(request: GenerateRequest) -> None:
    assert from_request(pb.GenerateRequest.FromString(to_request(request).SerializeToString())) == request


@pytest.mark.parametrize(
    ("made", "param"),
    [
        (pb.GenerateRequest(), "kind"),
        (pb.GenerateRequest(kind=pb.KIND_CHAT, extra_json="{"), "extra_json"),
        (pb.GenerateRequest(kind=pb.KIND_CHAT, extra_json="[1]"), "extra_json"),
        (pb.GenerateRequest(kind=pb.KIND_CHAT, tool_choice_json="5"), "tool_choice_json"),
        (
            pb.GenerateRequest(kind=pb.KIND_CHAT, tools=[pb.Tool(parameters_json="x")]),
            "tools[0].parameters_json",
        ),
        (
            pb.GenerateRequest(kind=pb.KIND_CHAT, messages=[pb.Message(parts_json="{}")]),
            "messages[0].parts_json",
        ),
        (
            pb.GenerateRequest(kind=pb.KIND_CHAT, messages=[pb.Message(parts_json="[1]")]),
            "messages[0].parts_json",
        ),
    ],
)
def test_a_message_that_makes_no_sense_is_refused_by_name(made: pb.GenerateRequest, param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        from_request(made)
    assert caught.value.param == param


def test_an_embedding_has_its_own_method() -> None:
    with pytest.raises(ParameterError, match="Embed"):
        to_request(GenerateRequest(kind="embedding", model="m", inputs=("x",)))


def test_an_event_of_a_later_version_is_no_event() -> None:
    with pytest.raises(ProtocolError):
        from_event(pb.Event(seq=1))
    with pytest.raises(ProtocolError):
        from_event(pb.Event(seq=1, completed=pb.Completed(data_json="[")))


def test_options_out_of_a_message() -> None:
    made = pb.Options(
        priority=pb.PRIORITY_BACKGROUND,
        timeout_ns=5_000,
        min_p=0.25,
        repetition_penalty=1.5,
        logit_bias={3: -1.0},
        guidance=pb.Guidance(kind="regex", value="a+"),
        kv_bits=8,
        use_draft=False,
        draft_tokens=4,
        use_prefix_cache=False,
    )
    assert from_options(made, remaining_ns=None) == RunOptions(
        priority="background",
        timeout_ns=5_000,
        min_p=0.25,
        repetition_penalty=1.5,
        logit_bias={3: -1.0},
        guidance=Guidance(kind="regex", value="a+"),
        kv_bits=8,
        use_draft=False,
        draft_tokens=4,
        use_prefix_cache=False,
    )
    assert from_options(pb.Options(), remaining_ns=None) == RunOptions()


@pytest.mark.parametrize(
    ("asked", "remaining", "timeout"), [(None, None, None), (None, 7, 7), (9, None, 9), (9, 7, 7), (5, 7, 5)]
)
def test_no_option_outlives_the_call(asked: int | None, remaining: int | None, timeout: int | None) -> None:
    assert from_options(pb.Options(timeout_ns=asked), remaining_ns=remaining).timeout_ns == timeout


@pytest.mark.parametrize(
    "made",
    [pb.Options(kv_bits=5), pb.Options(guidance=pb.Guidance(kind="xml")), pb.Options(priority=9)],  # type: ignore[arg-type]
)
def test_options_that_are_none_are_refused(made: pb.Options) -> None:
    with pytest.raises(ParameterError):
        from_options(made, remaining_ns=None)


def test_what_is_generated_is_in_step_with_the_proto() -> None:
    # To mend: python proto/generate.py.
    done = subprocess.run(
        [sys.executable, str(ROOT / "proto" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

from __future__ import annotations

import msgspec
import pytest
from tests.contract.backends.wire import drive

from tokenweir.backends.sglang import sglang, sglang_jax
from tokenweir.core.errors import SpecError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.core.requests import GenerateRequest, Json, Message, Sampling, Tool
from tokenweir.ports.backend import HttpResponse
from tokenweir.ports.timing import rows

TEXT = GenerateRequest(kind="completion", model="m", prompt="a")
DONE = b"data: [DONE]\n\n"


def body(request: GenerateRequest) -> dict[str, Json]:
    return msgspec.json.decode(sglang().encode(request).body)


def event(text: str, tokens: int, ids: int | None, *, index: int | None = None, **meta: Json) -> bytes:
    fields: dict[str, Json] = {"text": text, "meta_info": {"id": "r", "completion_tokens": tokens, **meta}}
    if ids is not None:
        fields["output_ids"] = list(range(ids))
    if index is not None:
        fields["index"] = index
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def decode(*pieces: bytes, request: GenerateRequest = TEXT) -> list[Event]:
    stream = b"".join(pieces)
    events = drive(sglang().decoder(request), [stream])
    assert sglang().decoder(request).timing(stream) == rows(events)
    return [event for _, event in events]


def tokens(events: list[Event]) -> list[tuple[str, int | None]]:
    return [(event.text, event.count) for event in events if isinstance(event, Token)]


STOP: dict[str, Json] = {"type": "stop", "matched": 2}


def test_cumulative_and_incremental_streams_mean_the_same() -> None:
    cumulative = decode(
        event("a", 1, 1),
        event("aa", 2, 2),
        event("aab", 4, 4),
        event("aabc", 5, 5, finish_reason=STOP),
        DONE,
    )
    incremental = decode(
        event("a", 1, 1),
        event("a", 2, 1),
        event("b", 4, 2),
        event("c", 5, 1, finish_reason=STOP),
        DONE,
    )
    assert cumulative == incremental
    assert tokens(cumulative) == [("a", 1), ("a", 1), ("b", 2), ("c", 1)]


def test_a_stream_without_ids_is_cumulative() -> None:
    events = decode(event("a", 1, None), event("ab", 2, None, finish_reason="stop"), DONE)
    assert tokens(events) == [("a", 1), ("b", 1)]
    assert events[-1] == Completed(seq=4, finish_reason="stop")


def test_tokens_without_text_go_to_the_next_text() -> None:
    events = decode(
        event("", 1, 1), event("é", 2, 2), event("é", 3, 3), event("é!", 4, 4, finish_reason=STOP), DONE
    )
    assert tokens(events) == [("é", 2), ("!", 2)]


def test_a_trimmed_stop_string_takes_nothing_back() -> None:
    events = decode(event("ab\n", 2, 2), event("ab\n#", 3, 3), event("ab", 4, 4, finish_reason=STOP), DONE)
    assert tokens(events) == [("ab\n", 2), ("#", 1)]
    assert isinstance(events[-1], Completed)


def test_choices_are_kept_apart_and_summed() -> None:
    request = msgspec.structs.replace(TEXT, sampling=Sampling(n=2))
    last: dict[str, Json] = {"finish_reason": STOP, "prompt_tokens": 3}
    events = decode(
        event("a", 1, 1, index=0),
        event("x", 1, 1, index=1),
        event("xy", 2, 2, index=1, **last),
        event("ab", 2, 2, index=0, **last),
        DONE,
        request=request,
    )
    assert [(event.index, event.text) for event in events if isinstance(event, Token)] == [
        (0, "a"),
        (1, "x"),
        (1, "y"),
        (0, "b"),
    ]
    usage = [event for event in events if isinstance(event, Usage)][-1]
    assert (usage.input_tokens, usage.output_tokens) == (3, 4)


def test_recompiles_are_summed_over_the_events() -> None:
    events = decode(
        event("a", 1, 1, cache_miss_count=2),
        event("ab", 2, 2, cache_miss_count=1),
        event("abc", 3, 3, cache_miss_count=0, finish_reason=STOP),
        DONE,
    )
    (usage,) = [event for event in events if isinstance(event, Usage)]
    assert usage.recompiles == 3


def test_an_abort_of_ours_is_a_cancellation_and_one_of_the_server_s_a_failure() -> None:
    ours: Json = {"type": "abort", "message": "Abort before prefill"}
    assert isinstance(decode(event("", 0, None, finish_reason=ours), DONE)[-1], Cancelled)
    theirs: Json = {"type": "abort", "message": "The request queue is full.", "status_code": 503}
    failed = decode(event("a", 1, 1), event("a", 1, 1, finish_reason=theirs), DONE)[-1]
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.retryable, failed.status) == ("overloaded", True, 503)


def test_an_error_inside_the_stream_fails_it() -> None:
    failed = decode(event("a", 1, 1), b'data: {"error": {"message": "out of memory"}}\n\n', DONE)[-1]
    assert isinstance(failed, Failed)
    assert failed.message == "out of memory"


def test_the_simulator_s_send_times_are_kept() -> None:
    stream = event("a", 1, 1).replace(b'"text"', b'"sent_ns":5,"text"')
    stream += event("ab", 2, 2, finish_reason=STOP).replace(b'"text"', b'"sent_ns":9,"text"')
    events = decode(stream, DONE)
    assert [event.sent_ns for event in events if isinstance(event, Token)] == [5, 9]


def test_a_whole_answer_of_several_choices() -> None:
    request = msgspec.structs.replace(TEXT, stream=False, sampling=Sampling(n=2))
    meta: dict[str, Json] = {"id": "r", "finish_reason": STOP, "prompt_tokens": 1, "completion_tokens": 2}
    answer: list[Json] = [{"text": "ab", "meta_info": meta}, {"text": "cd", "meta_info": meta}]
    events = [event for _, event in drive(sglang().decoder(request), [msgspec.json.encode(answer)])]
    assert events == [
        Started(seq=0, upstream_id="r"),
        Token(seq=1, text="ab", count=2),
        Token(seq=2, text="cd", count=2, index=1),
        Usage(seq=3, input_tokens=1, output_tokens=4),
        Completed(seq=4, finish_reason="stop", data={"finish_reasons": {"0": "stop", "1": "stop"}}),
    ]


def test_a_completion_goes_to_generate_with_its_sampling() -> None:
    sampling = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True, seed=7, stop=("x",), logprobs=2, n=2)
    asked = sglang().encode(msgspec.structs.replace(TEXT, sampling=sampling, extra={"rid": "r"}))
    assert asked.path == "/generate"
    assert msgspec.json.decode(asked.body) == {
        "text": "a",
        "stream": True,
        "sampling_params": {
            "max_new_tokens": 8,
            "temperature": 0.0,
            "ignore_eos": True,
            "sampling_seed": 7,
            "stop": ["x"],
            "n": 2,
        },
        "return_logprob": True,
        "top_logprobs_num": 2,
        "rid": "r",
    }
    assert body(msgspec.structs.replace(TEXT, prompt=(5, 6)))["input_ids"] == [5, 6]


def test_a_schema_travels_as_text() -> None:
    wanted: dict[str, Json] = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object"}},
    }
    request = msgspec.structs.replace(TEXT, response_format=wanted)
    assert body(request)["sampling_params"] == {"json_schema": '{"type":"object"}'}
    request = msgspec.structs.replace(TEXT, response_format={"type": "json_object"})
    assert body(request)["sampling_params"] == {"json_schema": '{"type":"object"}'}


def test_the_openai_route_can_be_asked_for() -> None:
    request = msgspec.structs.replace(TEXT, extra={"route": "openai", "x": 1})
    asked = sglang().encode(request)
    assert asked.path == "/v1/completions"
    assert msgspec.json.decode(asked.body, type=dict[str, msgspec.Raw]).keys() == {
        "model",
        "prompt",
        "stream",
        "stream_options",
        "x",
    }
    chat = GenerateRequest(kind="chat", model="m", messages=(Message(role="user", content="a"),))
    assert sglang().encode(chat).path == "/v1/chat/completions"
    assert (
        sglang().encode(GenerateRequest(kind="embedding", model="m", inputs=("a",))).path == "/v1/embeddings"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"extra": {"route": "other"}},
        {"tools": (Tool(name="f"),)},
        {"response_format": {"type": "text"}},
        {"kind": "chat", "extra": {"route": "native"}},
    ],
)
def test_what_generate_cannot_be_asked_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        sglang().encode(msgspec.structs.replace(TEXT, **change))


def test_sglang_jax_has_no_seed_in_generate() -> None:
    request = msgspec.structs.replace(TEXT, sampling=Sampling(seed=7))
    with pytest.raises(SpecError, match="seed"):
        sglang_jax().encode(request)
    openai = msgspec.structs.replace(request, extra={"route": "openai"})
    assert sglang_jax().encode(openai).path == "/v1/completions"


def test_health_is_a_path_that_does_work() -> None:
    assert sglang().health().path == "/health"
    assert sglang_jax().health().path == "/health_generate"


def test_actions() -> None:
    flush = sglang().action("flush", {"timeout": 5})
    assert flush is not None
    assert (flush.method, flush.path) == ("POST", "/flush_cache?timeout=5")
    plain = sglang_jax().action("flush", {"timeout": 5})
    assert plain is not None
    assert plain.path == "/flush_cache"
    abort = sglang().action("abort", {"rid": "r"})
    assert abort is not None
    assert (abort.path, msgspec.json.decode(abort.body)) == ("/abort_request", {"rid": "r"})
    start = sglang().action("start_profile", {"num_steps": 2})
    assert start is not None
    assert msgspec.json.decode(start.body) == {"num_steps": 2}
    assert sglang().action("dance", {}) is None
    assert sglang().forgives("stop_profile", 500)
    assert not sglang().forgives("flush", 500)


def test_identity_keeps_secrets_out_and_says_what_is_missing() -> None:
    server: dict[str, Json] = {
        "version": "0.5.23",
        "revision": "abc",
        "api_key": "s3cret",
        "ssl_keyfile_password": "s3cret",
        "hf_token": "s3cret",
        "tp_size": 2,
        "tokenizer_path": "p",
        "max_total_tokens": 8,
        "host": "127.0.0.1",
        "internal_states": [{}],
        "context_length": 64,
        "quantization": None,
    }
    answers = [HttpResponse(status=404)] * 5
    answers[1] = HttpResponse(status=200, body=msgspec.json.encode(server))
    answers[3] = HttpResponse(status=200, body=b'{"model_path":"m/p","is_generation":true}')
    identity = sglang().identity(answers)
    assert (identity.version, identity.revision, identity.model) == ("0.5.23", "abc", "m/p")
    assert identity.max_model_tokens == 64
    assert identity.flags == {
        "tp_size": 2,
        "tokenizer_path": "p",
        "max_total_tokens": 8,
        "revision": "abc",
        "context_length": 64,
    }
    assert identity.missing.keys() == {"commit"}
    answers[1] = HttpResponse(status=200, body=b'{"version":"1","revision":"r","commit":"c"}')
    told = sglang().identity(answers)
    assert (told.commit, told.flags, told.missing) == ("c", {"revision": "r"}, {})
    silent = sglang().identity([HttpResponse(status=0)] * 5)
    assert silent.missing.keys() == {"version", "commit", "model", "revision"}

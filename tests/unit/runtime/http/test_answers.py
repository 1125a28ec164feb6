from __future__ import annotations

import base64
import struct
from collections.abc import Iterable

import pytest
from tests.factories.doors import MESSAGES, Exchange, ask, dig, make_app, post

from tokenweir.core.errors import (
    DeadlineError,
    DrainingError,
    GuidanceError,
    NoMemoryError,
    TooManyStreamsError,
    UnavailableError,
    WeirError,
)
from tokenweir.core.events import (
    Accepted,
    Cancelled,
    Completed,
    Degraded,
    Event,
    Failed,
    Started,
    Token,
    TokenLogprob,
    Usage,
)
from tokenweir.core.requests import GenerateRequest, Json, ToolCall
from tokenweir.runtime.http.app import App
from tokenweir.runtime.http.fakes import FakeServing, spoken
from tokenweir.runtime.options import RunOptions

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def scripted(*events: Event) -> App:
    def script(_request: GenerateRequest, _options: RunOptions) -> Iterable[Event]:
        return events

    return make_app(FakeServing(script))


def raising(error: WeirError) -> App:
    def script(_request: GenerateRequest, _options: RunOptions) -> WeirError:
        return error

    return make_app(FakeServing(script))


def chat(app: App, **options: Json) -> Exchange:
    return ask(app, post(CHAT, {"model": "fake", "messages": MESSAGES, **options}))


def completion(app: App, **options: Json) -> Exchange:
    return ask(app, post(TEXT, {"model": "fake", "prompt": "x", **options}))


def joined(exchange: Exchange, *, choice: int = 0, field: str = "content") -> str:
    found = ""
    for event in exchange.events():
        choices = event["choices"]
        assert isinstance(choices, list)
        for one in choices:
            assert isinstance(one, dict)
            delta = one.get("delta", one)
            assert isinstance(delta, dict)
            if one["index"] == choice:
                found += str(delta.get(field) or "")
    return found


def test_a_whole_chat() -> None:
    done = chat(make_app())
    assert done.status == 200
    body = done.json
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake"
    assert body["system_fingerprint"] == "fp_" + "f" * 16
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello there", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert str(body["id"]).removeprefix("chatcmpl-") == done.answer_headers["x-request-id"].removeprefix(
        "req_"
    )


def test_a_streamed_chat() -> None:
    done = chat(make_app(), stream=True)
    assert done.answer_headers["content-type"] == "text/event-stream; charset=utf-8"
    assert done.text.endswith("data: [DONE]\n\n")
    events = done.events()
    assert len({str(event["id"]) for event in events}) == 1
    assert all("usage" not in event for event in events)
    deltas = [event["choices"] for event in events]
    assert deltas == [
        [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
        [{"index": 0, "delta": {"content": "hello "}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "there"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
    ]


def test_the_usage_of_a_stream_comes_last_and_only_when_asked_for() -> None:
    events = chat(make_app(), stream=True, stream_options={"include_usage": True}).events()
    assert events[-1]["choices"] == []
    assert isinstance(events[-1]["usage"], dict)
    assert events[-1]["usage"]["total_tokens"] == 9
    assert all(event["usage"] is None for event in events[:-1])


def test_choices_keep_their_own_text_and_reason() -> None:
    events = spoken("one two", choices=2)
    end = Completed(seq=99, finish_reason="stop", data={"finish_reasons": ["stop", "length"]})
    app = scripted(*events[:-1], end)
    choices = chat(app, n=2).json["choices"]
    assert isinstance(choices, list)
    assert [choice["finish_reason"] for choice in choices if isinstance(choice, dict)] == ["stop", "length"]
    streamed = chat(app, n=2, stream=True)
    assert joined(streamed, choice=0) == joined(streamed, choice=1) == "one two"


@pytest.mark.parametrize("text", ['quote " and \\ and \n', "ümläut ☃ 🦀", "\u2028\x00\x1f", "</script>"])
def test_any_text_survives_a_stream(text: str) -> None:
    app = scripted(Token(seq=0, text=text), Completed(seq=1, finish_reason="stop"))
    assert joined(chat(app, stream=True)) == text
    assert joined(completion(app, stream=True), field="text") == text


def test_reasoning_has_its_own_field() -> None:
    app = scripted(
        Token(seq=0, reasoning="let me see"),
        Token(seq=1, text="four"),
        Usage(seq=2, input_tokens=1, output_tokens=4, reasoning_tokens=3),
        Completed(seq=3, finish_reason="stop"),
    )
    message = chat(app).json["choices"]
    assert isinstance(message, list)
    assert isinstance(message[0], dict)
    assert message[0]["message"] == {
        "role": "assistant",
        "content": "four",
        "refusal": None,
        "reasoning_content": "let me see",
    }
    streamed = chat(app, stream=True)
    assert joined(streamed, field="reasoning_content") == "let me see"
    assert joined(streamed) == "four"


def test_tool_calls_streamed_and_whole() -> None:
    app = scripted(
        Token(seq=0, tool_calls=(ToolCall(index=0, id="call_a", name="look", arguments=""),)),
        Token(seq=1, tool_calls=(ToolCall(index=0, arguments='{"q":'),)),
        Token(seq=2, tool_calls=(ToolCall(index=0, arguments='"x"}'),)),
        Token(seq=3, tool_calls=(ToolCall(index=1, id="call_b", name="find", arguments="{}"),)),
        Completed(seq=4, finish_reason="tool_calls"),
    )
    choices = chat(app).json["choices"]
    assert isinstance(choices, list)
    assert isinstance(choices[0], dict)
    assert choices[0]["finish_reason"] == "tool_calls"
    message = choices[0]["message"]
    assert isinstance(message, dict)
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_a", "type": "function", "function": {"name": "look", "arguments": '{"q":"x"}'}},
        {"id": "call_b", "type": "function", "function": {"name": "find", "arguments": "{}"}},
    ]
    chunks = chat(app, stream=True).events()[1:-1]
    assert [dig(chunk, "choices", 0, "delta", "tool_calls", 0) for chunk in chunks] == [
        {"index": 0, "id": "call_a", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"q":'}},
        {"index": 0, "function": {"arguments": '"x"}'}},
        {"index": 1, "id": "call_b", "type": "function", "function": {"name": "find", "arguments": "{}"}},
    ]


def test_log_probabilities_of_both_interfaces() -> None:
    first = TokenLogprob(token="he", logprob=-0.5, top=(("he", -0.5), ("ha", -1.5)))
    second = TokenLogprob(token="llo", logprob=-0.25)
    app = scripted(
        Token(seq=0, text="he", logprobs=(first,)),
        Token(seq=1, text="llo", logprobs=(second,)),
        Completed(seq=2, finish_reason="stop"),
    )
    expected = [
        {
            "token": "he",
            "logprob": -0.5,
            "bytes": [104, 101],
            "top_logprobs": [
                {"token": "he", "logprob": -0.5, "bytes": [104, 101]},
                {"token": "ha", "logprob": -1.5, "bytes": [104, 97]},
            ],
        },
        {"token": "llo", "logprob": -0.25, "bytes": [108, 108, 111], "top_logprobs": []},
    ]
    whole = chat(app, logprobs=True, top_logprobs=2).json
    assert dig(whole, "choices", 0, "logprobs", "content") == expected
    chunks = chat(app, logprobs=True, stream=True).events()[1:-1]
    assert [dig(chunk, "choices", 0, "logprobs", "content", 0) for chunk in chunks] == expected
    assert dig(completion(app, logprobs=2).json, "choices", 0, "logprobs") == {
        "tokens": ["he", "llo"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"he": -0.5, "ha": -1.5}, {}],
        "text_offset": [0, 2],
    }
    chunks = completion(app, logprobs=2, stream=True).events()[:-1]
    assert [dig(chunk, "choices", 0, "logprobs", "text_offset", 0) for chunk in chunks] == [0, 2]


def test_a_whole_and_a_streamed_completion() -> None:
    body = completion(make_app()).json
    assert body["object"] == "text_completion"
    assert str(body["id"]).startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "hello there", "logprobs": None, "finish_reason": "stop"}]
    assert joined(completion(make_app(), stream=True), field="text") == "hello there"


@pytest.mark.parametrize("stream", [True, False])
def test_several_prompts_are_answered_at_once_and_their_usage_is_summed(*, stream: bool) -> None:
    serving = FakeServing(lambda request, _: spoken(f"{request.prompt}!", choices=request.sampling.n))
    options: dict[str, Json] = {"stream_options": {"include_usage": True}} if stream else {}
    done = completion(make_app(serving), prompt=["a", "b", "c"], n=2, stream=stream, **options)
    if stream:
        assert [joined(done, choice=index, field="text") for index in range(6)] == [
            "a!",
            "a!",
            "b!",
            "b!",
            "c!",
            "c!",
        ]
        usage = done.events()[-1]["usage"]
    else:
        assert [dig(done.json, "choices", at, "text") for at in range(6)] == [
            "a!",
            "a!",
            "b!",
            "b!",
            "c!",
            "c!",
        ]
        usage = done.json["usage"]
    assert isinstance(usage, dict)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (21, 6)
    assert len(serving.asked) == 3


def test_one_bad_prompt_of_several_fails_the_request() -> None:
    def script(request: GenerateRequest, _options: RunOptions) -> Iterable[Event] | WeirError:
        return GuidanceError("no") if request.prompt == "b" else spoken("x")

    done = completion(make_app(FakeServing(script)), prompt=["a", "b"])
    assert (done.status, done.error["code"]) == (400, "guidance")


def test_degradation_is_told_before_and_after_the_first_token() -> None:
    app = scripted(
        Degraded(seq=0, what="shorter answer"),
        Token(seq=1, text="x"),
        Degraded(seq=2, what="no draft"),
        Completed(seq=3, finish_reason="length"),
    )
    assert chat(app).answer_headers["x-weir-degraded"] == "shorter answer; no draft"
    streamed = chat(app, stream=True)
    assert streamed.answer_headers["x-weir-degraded"] == "shorter answer"
    assert ": degraded: no draft\n\n" in streamed.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "retry_after"),
    [
        (GuidanceError("bad schema", mend="mend it"), 400, "invalid_request_error", "guidance", None),
        (UnavailableError("starting", retry_after_ns=2_500_000_000), 503, "server_error", "unavailable", "3"),
        (DrainingError("draining"), 503, "server_error", "draining", "1"),
        (TooManyStreamsError("full"), 429, "rate_limit_error", "too_many_streams", "1"),
        (NoMemoryError("too big"), 507, "server_error", "no_memory", None),
        (DeadlineError("too late"), 504, "server_error", "timeout", None),
    ],
)
def test_what_is_refused_before_a_token_has_a_status(
    *, error: WeirError, status: int, kind: str, code: str, retry_after: str | None, stream: bool
) -> None:
    done = chat(raising(error), stream=stream)
    assert done.status == status
    assert done.error == {
        "message": str(error),
        "type": kind,
        "param": None,
        "code": code,
        "mend": error.mend,
    }
    assert done.answer_headers.get("retry-after") == retry_after


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_token_has_its_own_status(*, stream: bool) -> None:
    event = Failed(seq=2, kind="timeout", message="waited too long", status=504, retryable=True)
    done = chat(scripted(Accepted(seq=0), Started(seq=1), event), stream=stream)
    assert (done.status, done.error["code"]) == (504, "timeout")


def test_a_failure_after_the_first_token_is_the_stream_s_last_event() -> None:
    event = Failed(seq=1, kind="engine_restarted", message="the process was lost", status=503, retryable=True)
    done = chat(scripted(Token(seq=0, text="x"), event), stream=True)
    assert done.status == 200
    assert done.whole
    error = done.events()[-1]["error"]
    assert isinstance(error, dict)
    assert (error["code"], error["message"]) == ("engine_restarted", "the process was lost")
    assert "[DONE]" not in done.text
    assert chat(scripted(Token(seq=0, text="x"), event)).status == 503


def test_a_cancelled_answer_is_no_success() -> None:
    assert chat(scripted(Token(seq=0, text="x"), Cancelled(seq=1))).status == 503


def test_an_answer_without_an_end_is_no_success() -> None:
    done = chat(scripted(Token(seq=0, text="x")))
    assert done.status == 503
    assert "without saying" in str(done.error["message"])


def test_an_answer_without_a_token_is_whole() -> None:
    done = chat(scripted(Completed(seq=0, finish_reason="stop")), stream=True)
    assert done.status == 200
    assert done.events()[-1]["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    ]


def test_the_draft_must_be_the_model_s_own() -> None:
    done = chat(make_app(), draftModel="other")
    assert (done.status, done.error["param"]) == (400, "draft_model")


def test_embeddings_in_both_encodings() -> None:
    plain = ask(make_app(), post("/v1/embeddings", {"model": "fake", "input": ["ab", "c"]})).json
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    vectors = [dig(plain, "data", at, "embedding") for at in range(2)]
    packed = ask(make_app(), post("/v1/embeddings", {"input": ["ab", "c"], "encoding_format": "base64"})).json
    for at, vector in enumerate(vectors):
        raw = base64.b64decode(str(dig(packed, "data", at, "embedding")))
        assert list(struct.unpack("<2f", raw)) == pytest.approx(vector)


def test_tokens_there_and_back() -> None:
    found = ask(make_app(), post("/tokenize", {"prompt": "hé"})).json
    assert found == {"count": 3, "max_model_len": 1024, "tokens": [104, 195, 169]}
    back = ask(make_app(), post("/v1/detokenize", {"tokens": found["tokens"]})).json
    assert back == {"prompt": "hé"}
    assert ask(make_app(), post("/v1/tokenize", {"messages": MESSAGES})).json["count"] == 2


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": False}, "add_special_tokens"),
        ("/detokenize", {"tokens": [256]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": 5}, "tokens"),
    ],
)
def test_bad_tokens_are_refused(path: str, body: Json, param: str) -> None:
    done = ask(make_app(), post(path, body))
    assert (done.status, done.error["param"]) == (400, param)

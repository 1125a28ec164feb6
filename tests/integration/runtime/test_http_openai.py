"""The official client against ``weir runtime``: a simulated model, and a real one made for the purpose."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from prometheus_client.parser import text_string_to_metric_families
from tests.factories.language_models import TOOL_TEMPLATE, random_llama
from tests.factories.served import Served, serve
from tests.factories.sim_models import directory

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "how fast does the water fall?"}]
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 9}, "open": {"type": "boolean"}},
    "required": ["level", "open"],
    "additionalProperties": False,
}
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "measure", "description": "Measure the river", "parameters": SCHEMA},
}


@pytest.fixture(scope="module", params=["sim", "mlx"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "sim":
        model = directory(
            place / "tiny", itl="1ms", replies=[{"when": "think", "text": "<think>easy</think>Four."}]
        )
    else:
        pytest.importorskip("mlx_lm")
        model = random_llama(place / "tiny", template=TOOL_TEMPLATE)
    with serve(model, log=place / "log") as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_chat_whole_and_streamed_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, temperature=0)
    (choice,) = whole.choices
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12
    assert choice.finish_reason in {"length", "stop"}
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_a_stream_is_read_with_the_client_s_own_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="tiny", messages=MESSAGES, max_tokens=20, extra_body={"guided_choice": ["the gate is open"]}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "the gate is open"


def test_completions_of_text_and_of_tokens(server: Served, client: openai.OpenAI) -> None:
    prompt = "the weir holds"
    status, found = server.post("/tokenize", {"prompt": prompt})
    assert status == 200
    tokens = cast("list[int]", found["tokens"])
    assert server.post("/detokenize", {"tokens": tokens})[1]["prompt"] == prompt
    by_text = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)
    by_tokens = client.completions.create(model="tiny", prompt=tokens, max_tokens=8, temperature=0)
    assert by_text.choices[0].text == by_tokens.choices[0].text
    assert by_text.usage is not None
    assert by_text.usage.prompt_tokens == len(tokens)
    two = client.completions.create(model="tiny", prompt=[prompt, "another"], max_tokens=8, temperature=0)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == by_text.choices[0].text


def test_choices_are_drawn_apart_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=12, temperature=1.5, n=3, seed=seed
        )
        return [choice.message.content for choice in answer.choices]

    first = drawn(5)
    assert len(set(first)) > 1
    assert drawn(5) == first


def test_log_probabilities_of_both_interfaces(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    told = chat.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert chat.usage is not None
    assert len(told.content) == chat.usage.completion_tokens
    for one in told.content:
        assert one.logprob <= 0
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob >= one.top_logprobs[-1].logprob
        # A greedy token is the most probable one.
        assert one.logprob == pytest.approx(one.top_logprobs[0].logprob)
    text = client.completions.create(model="tiny", prompt="x", max_tokens=6, temperature=0, logprobs=2)
    legacy = text.choices[0].logprobs
    assert legacy is not None
    assert legacy.tokens is not None
    assert legacy.text_offset is not None
    assert len(legacy.tokens) == len(legacy.token_logprobs or []) == len(legacy.text_offset)
    assert legacy.text_offset[0] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_matches_its_schema(client: openai.OpenAI, *, stream: bool) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=60,
        temperature=1,
        response_format={"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA}},
        stream=stream,
    )
    if isinstance(answer, openai.Stream):
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
    else:
        text = answer.choices[0].message.content or ""
    found = json.loads(text)
    assert set(found) == {"level", "open"}
    assert 0 <= found["level"] <= 9


@pytest.mark.parametrize(
    ("body", "pattern"),
    [
        ({"guided_choice": ["open", "shut"]}, r"open|shut"),
        ({"guidedRegex": "[0-9]{3}-[a-f]{2}"}, r"[0-9]{3}-[a-f]{2}"),
        ({"guided_grammar": 'start: "gate " /[0-9]/'}, r"gate [0-9]"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, r"a|b"),
    ],
)
def test_answers_are_guided_in_every_way(
    client: openai.OpenAI, body: dict[str, object], pattern: str
) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=40, temperature=1, extra_body=body
    )
    assert re.fullmatch(pattern, answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI, *, stream: bool) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=80,
        temperature=1,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "measure"}},
        stream=stream,
    )
    if isinstance(answer, openai.Stream):
        chunks = [chunk.choices[0] for chunk in answer if chunk.choices]
        deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        assert len(deltas) > 1
        assert deltas[0].id
        assert deltas[0].function is not None
        name = deltas[0].function.name
        arguments = "".join(call.function.arguments or "" for call in deltas if call.function is not None)
        finish = chunks[-1].finish_reason
    else:
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        name, arguments = call.function.name, call.function.arguments
        finish = answer.choices[0].finish_reason
    assert name == "measure"
    assert set(json.loads(arguments)) == {"level", "open"}
    assert finish in {"tool_calls", "stop"}


def test_stop_strings_end_an_answer_and_are_left_out(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="x", max_tokens=12, temperature=0).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    cut = client.completions.create(
        model="tiny", prompt="x", max_tokens=12, temperature=0, stop=[stop]
    ).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_embeddings_have_length_one(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="tiny", input=["the water falls", "the gate is open"])
    assert [one.index for one in found.data] == [0, 1]
    for one in found.data:
        assert sum(value * value for value in one.embedding) == pytest.approx(1, abs=1e-3)
    plain = client.embeddings.create(model="tiny", input="the water falls", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-5)


@pytest.mark.parametrize("body", [{}, {"model": "tiny"}, {"input": None}])
def test_an_embedding_without_input_says_so(server: Served, body: dict[str, object]) -> None:
    status, told = server.post("/v1/embeddings", body)
    assert status == 400
    assert told["error"] == {
        "message": "'input' is missing; send a text, or a list of 1 to 2048",
        "type": "invalid_request_error",
        "param": "input",
        "code": "missing_required_parameter",
        "mend": "send a text, or a list of 1 to 2048",
    }


def test_a_prompt_s_second_visit_is_cached(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "the river measures its own flow " * 20}
    ]

    def cached() -> int:
        usage = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=4, temperature=0
        ).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached() == 0
    assert cached() > 100


@pytest.mark.parametrize(
    ("body", "error", "param", "words"),
    [
        ({"tempereture": 1}, openai.BadRequestError, "tempereture", "did you mean 'temperature'"),
        ({"max_kv_size": 9}, openai.BadRequestError, "max_kv_size", "loading"),
        ({"topP": 0.5, "top_p": 0.6}, openai.BadRequestError, "top_p", "one option"),
        ({"draftModel": "a", "draft_model": "b"}, openai.BadRequestError, "draft_model", "one option"),
        ({"model": "nope"}, openai.NotFoundError, None, "'tiny'"),
        ({"max_tokens": 100_000}, openai.BadRequestError, None, "context"),
        ({"guided_json": {"type": "object", "not": {}}}, openai.BadRequestError, None, "not"),
        ({"guided_regex": "("}, openai.BadRequestError, None, "regex"),
        ({"messages": [{"role": "user", "content": "x " * 20_000}]}, openai.BadRequestError, None, "context"),
    ],
)
def test_what_cannot_be_is_refused_with_its_mend(
    server: Served,
    client: openai.OpenAI,
    body: dict[str, object],
    error: type[openai.APIStatusError],
    param: str | None,
    words: str,
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, extra_body=body)
    assert caught.value.param == param or param is None
    assert caught.value.type == "invalid_request_error"
    assert words in str(caught.value)
    assert server.get("/ready")[0] == 200


def test_the_model_is_identified(server: Served, client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    again = client.models.retrieve("tiny")
    assert model == again
    revision = str(getattr(model, "revision", ""))
    assert re.fullmatch(r"[0-9a-f]{64}", revision)
    health = json.loads(server.get("/health")[1])
    assert health["engine"]["models"][0]["card"]["revision"] == revision
    assert re.fullmatch(r"[0-9a-f]{40}", health["commit"])


def test_a_client_that_goes_away_frees_its_place(server: Served, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    for at, _ in enumerate(stream):
        if at == 3:
            break
    stream.close()
    deadline = time.monotonic() + 10
    while json.loads(server.get("/health")[1])["engine"]["streams"]:
        assert time.monotonic() < deadline, "the request goes on without a reader"
    samples = {
        (sample.name, sample.labels.get("outcome")): sample.value
        for family in text_string_to_metric_families(server.get("/metrics")[1].decode())
        for sample in family.samples
    }
    assert samples["weir_runtime_requests_total", "gone"] >= 1


def test_many_at_once_get_the_answer_that_one_gets(client: openai.OpenAI) -> None:
    def ask(prompt: str) -> str:
        return (
            client.completions.create(model="tiny", prompt=prompt, max_tokens=16, temperature=0)
            .choices[0]
            .text
        )

    prompts = [f"gate {at}" for at in range(8)]
    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(ask, prompts))
    assert together == alone

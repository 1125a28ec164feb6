from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from tests.integration.sim.wire import Wire, running

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "say some words"},
]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place", "days"],
        },
    },
}


@pytest.fixture(scope="module")
def client(wire: Wire) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{wire.sim.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_a_whole_chat_answer_is_as_long_as_asked_and_counts_its_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=7)
    choice = answer.choices[0]
    assert choice.message.content is not None
    assert len(choice.message.content.split()) == 7
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        5,
        7,
        12,
    )
    assert answer.model_extra is not None
    assert answer.model_extra["sent_ns"] > 0


def test_a_stream_gives_the_same_text_a_token_at_a_time(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=9)
    chunks = list(
        client.chat.completions.create(
            model="sim", messages=MESSAGES, max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert deltas[0] == ""
    assert len([one for one in deltas if one]) == 9
    assert "".join(one or "" for one in deltas) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9
    stamps = [chunk.model_extra["sent_ns"] for chunk in chunks if chunk.model_extra]
    assert len(stamps) == len(chunks)
    assert stamps == sorted(stamps)
    assert stamps[9] - stamps[1] >= 8 * 500_000 * 0.9


def test_text_completions_stream_and_come_whole(client: OpenAI) -> None:
    whole = client.completions.create(model="sim", prompt="one two", max_tokens=5)
    parts = list(client.completions.create(model="sim", prompt="one two", max_tokens=5, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 5)
    by_ids = client.completions.create(model="sim", prompt=[1, 2, 3], max_tokens=5)
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == 3


def test_several_prompts_and_several_choices(client: OpenAI) -> None:
    answer = client.completions.create(model="sim", prompt=["a b", "c"], n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    chunks = list(
        client.chat.completions.create(model="sim", messages=MESSAGES, n=2, max_tokens=4, stream=True)
    )
    for index in (0, 1):
        mine = [one.choices[0] for one in chunks if one.choices[0].index == index]
        assert len([one for one in mine if one.delta.content]) == 4
        assert mine[-1].finish_reason == "length"


def test_a_forced_tool_is_called_whole_and_streamed(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="sim", messages=MESSAGES, tools=[TOOL], tool_choice="required", max_tokens=50
    )
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.tool_calls is not None
    call = whole.choices[0].message.tool_calls[0]
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"place", "days"}
    with client.chat.completions.stream(
        model="sim", messages=MESSAGES, tools=[TOOL], tool_choice="required", max_tokens=50
    ) as stream:
        final = stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls
    assert streamed is not None
    assert streamed[0].function.name == "weather"
    assert streamed[0].function.arguments == call.function.arguments


def test_a_schema_gets_fitting_json(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sim",
        messages=MESSAGES,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "a",
                "schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
            },
        },
    )
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_have_length_one_and_are_the_same_for_the_same_text(client: OpenAI, form: str) -> None:
    answer = client.embeddings.create(
        model="sim",
        input=["a lake", "a lake", "a road"],
        dimensions=12,
        encoding_format="float" if form == "float" else "base64",
    )
    if form == "float":
        one, same, other = (item.embedding for item in answer.data)
        assert one == same != other
        assert len(one) == 12
        assert sum(value * value for value in one) == pytest.approx(1.0)
    assert answer.usage.prompt_tokens == 6
    # Without a form the client asks for base64 and decodes it itself.
    decoded = client.embeddings.create(model="sim", input="a lake", dimensions=12).data[0].embedding
    assert sum(value * value for value in decoded) == pytest.approx(1.0, rel=1e-5)


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sim"]


def test_errors_are_the_ones_that_the_client_knows(client: OpenAI) -> None:
    def create(fault: str) -> None:
        client.chat.completions.create(model="sim", messages=MESSAGES, extra_headers={"x-sim-fault": fault})

    with pytest.raises(openai.RateLimitError) as limited:
        create("429;retry-after=2")
    assert limited.value.response.headers["retry-after"] == "2"
    with pytest.raises(openai.InternalServerError):
        create("503")
    with pytest.raises(openai.APIConnectionError):
        create("close")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=-1)


def test_a_wrong_model_and_a_wrong_key_are_refused() -> None:
    with running(strict_model=True, api_key="right") as wire:
        url = f"{wire.sim.url}/v1"
        with OpenAI(base_url=url, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with OpenAI(base_url=url, api_key="right") as client:
            with pytest.raises(openai.NotFoundError, match="other"):
                client.chat.completions.create(model="other", messages=MESSAGES)
            assert client.chat.completions.create(model="sim", messages=MESSAGES).choices


def test_a_script_answers_with_reasoning_and_tools(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text(
        '{"match": {"contains": "weather"}, "reasoning": "let me look", "text": "I look.",'
        ' "tool_calls": [{"name": "weather", "arguments": {"place": "Ulm"}}]}\n',
        encoding="utf-8",
    )
    with running(script=str(script)) as wire:
        body = {"messages": [{"role": "user", "content": "the weather?"}], "max_tokens": 50}
        message = wire.json("POST", "/v1/chat/completions", body)["choices"][0]["message"]
        assert message["content"] == "I look."
        assert message["reasoning_content"] == "let me look"
        assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"place": "Ulm"}
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        *events, usage = wire.events("/v1/chat/completions", asked)
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "let me look"
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert usage["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
        other = {"messages": [{"role": "user", "content": "else"}], "max_tokens": 2}
        assert wire.json("POST", "/v1/chat/completions", other)["choices"][0]["finish_reason"] == "length"

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.members import charged, member
from tests.factories.queued import User, newest, waiting

from tokenweir.gateway.doors.routes import ROUTES
from tokenweir.sim.process import SimProcess

SETTINGS = '[worker]\nattempts = 3\nbackoff = "10ms"\nlease = "2s"\n'
SCRIPT = [
    {
        "match": {"contains": "weather"},
        "reasoning": "look it up",
        "tool_calls": [{"name": "weather", "arguments": {"place": "Ulm", "unit": "celsius"}}],
    },
    {"match": {"contains": "think"}, "reasoning": "well, let me see", "text": "it is four"},
]
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    "strict": False,
}


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimProcess]:
    script: Path = tmp_path_factory.mktemp("sim") / "script.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in SCRIPT), encoding="utf-8")
    with SimProcess(ttft="constant:5ms", itl="constant:2ms", script=str(script)) as process:
        yield process


@pytest.fixture(scope="module")
def door(endpoints: str) -> Iterator[GatewayProcess]:
    with gateway(SETTINGS + endpoints) as process:
        yield process


def dumped(events: Iterable[ResponseStreamEvent]) -> list[dict[str, Any]]:
    return [event.to_dict() for event in events]


def whole(response: Response) -> dict[str, Any]:
    return response.to_dict()


def ended(client: OpenAI, response: str) -> Response:
    def look() -> Response | None:
        found = client.responses.retrieve(response)
        return None if found.status in {"queued", "in_progress"} else found

    return waiting(look, response)


def test_polling_streaming_and_resuming_show_one_sequence(client: OpenAI) -> None:
    events = dumped(client.responses.create(model="sim", input="think, how many?", stream=True))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:5] == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta"
    ]  # fmt: skip
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    name = events[0]["response"]["id"]
    found = client.responses.retrieve(name)
    assert whole(found) == events[-1]["response"]
    assert found.status == "completed"
    assert found.output_text == "it is four"
    assert [item.type for item in found.output] == ["reasoning", "message"]
    texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert len(texts) > 1
    assert "".join(texts) == found.output_text
    assert found.usage is not None
    assert found.usage.output_tokens_details.reasoning_tokens == 4
    for after in (-1, 0, 7, len(events) - 2, len(events) - 1, len(events) + 5):
        rest = dumped(client.responses.retrieve(name, stream=True, starting_after=after))
        assert rest == events[after + 1 :]


def test_an_answer_that_comes_whole_says_what_the_streamed_one_says(client: OpenAI) -> None:
    said = client.responses.create(
        model="sim",
        input="think again",
        instructions="be brief",
        metadata={"a": "b"},
        temperature=0.5,
        tools=[TOOL],
        user="u",
    )
    assert said.output_text == "it is four"
    assert (said.status, said.instructions, said.metadata, said.temperature) == (
        "completed",
        "be brief",
        {"a": "b"},
        0.5,
    )
    assert [tool.type for tool in said.tools] == ["function"]
    assert whole(client.responses.retrieve(said.id)) == whole(said)
    # The log is told as a stream as well.
    events = dumped(client.responses.retrieve(said.id, stream=True))
    assert events[-1]["response"] == whole(said)


def test_an_answer_that_is_cut_is_incomplete(client: OpenAI) -> None:
    said = client.responses.create(model="sim", input="count", max_output_tokens=6)
    assert said.status == "incomplete"
    assert said.incomplete_details is not None
    assert said.incomplete_details.reason == "max_output_tokens"
    assert said.usage is not None
    assert said.usage.output_tokens == 6


def test_a_background_stream_is_resumed_where_it_was_left(client: OpenAI) -> None:
    stream = client.responses.create(
        model="slow", input="count", max_output_tokens=60, background=True, stream=True
    )
    events: list[dict[str, Any]] = []
    for event in stream:
        events.append(event.to_dict())
        if len(events) == 20:
            break
    stream.close()
    name = events[0]["response"]["id"]
    assert client.responses.retrieve(name).status == "in_progress"
    last = events[-1]["sequence_number"]
    events += dumped(client.responses.retrieve(name, stream=True, starting_after=last))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert events == dumped(client.responses.retrieve(name, stream=True))
    assert events[-1]["response"] == whole(client.responses.retrieve(name))
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) == 60


def test_a_background_response_is_looked_at_later(client: OpenAI) -> None:
    said = client.responses.create(model="sim", input="think", background=True)
    assert said.status in {"queued", "in_progress"}
    assert said.output == []
    found = ended(client, said.id)
    assert (found.status, found.output_text) == ("completed", "it is four")


def test_a_background_response_is_cancelled(client: OpenAI, slow: SimProcess) -> None:
    stream = client.responses.create(
        model="slow", input="count", max_output_tokens=2000, background=True, stream=True
    )
    events: list[dict[str, Any]] = []
    for event in stream:
        events.append(event.to_dict())
        if event.type == "response.output_text.delta" and not any(
            each["type"] == "cancelling" for each in events
        ):
            cancelled = client.responses.cancel(events[0]["response"]["id"])
            assert cancelled.status == "cancelled"
            events.append({"type": "cancelling"})
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["status"] == "cancelled"
    assert client.responses.cancel(events[0]["response"]["id"]).status == "cancelled"
    waiting(lambda: True if slow.truth()["running"] == 0 else None, "the endpoint is idle")


def test_a_foreground_response_stops_when_its_caller_leaves(user: User, slow: SimProcess) -> None:
    parts = urlsplit(user.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    body = json.dumps({"model": "slow", "input": "count", "max_output_tokens": 2000, "stream": True})
    connection.request("POST", "/v1/responses", body, {"authorization": f"Bearer {user.key}"})
    answer = connection.getresponse()
    line = next(line for line in answer if line.startswith(b"data:"))
    name = json.loads(line[5:])["response"]["id"]
    assert user.ask("POST", f"/v1/responses/{name}/cancel").status == 400
    answer.close()
    connection.close()
    waiting(
        lambda: user.ask("GET", f"/v1/responses/{name}").json()["status"] == "cancelled" or None, "cancelled"
    )
    waiting(lambda: True if slow.truth()["running"] == 0 else None, "the endpoint is idle")


def test_a_function_is_called_and_its_output_goes_on(client: OpenAI) -> None:
    with client.responses.stream(model="sim", input="the weather?", tools=[TOOL]) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        said = stream.get_final_response()
    assert [item.type for item in said.output] == ["reasoning", "function_call"]
    call = said.output[1]
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"place": "Ulm", "unit": "celsius"})
    assert len(pieces) > 1
    assert "".join(pieces) == call.arguments
    more = client.responses.create(
        model="sim",
        previous_response_id=said.id,
        input=[
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
            {"role": "user", "content": "so think"},
        ],
    )
    assert more.output_text == "it is four"
    assert more.previous_response_id == said.id
    # Both turns went to the model.
    assert more.usage is not None
    alone = client.responses.create(model="sim", input="so think")
    assert alone.usage is not None
    assert more.usage.input_tokens > alone.usage.input_tokens
    items = client.responses.input_items.list(more.id, order="asc").data
    assert [item.type for item in items] == ["function_call_output", "message"]
    page = client.responses.input_items.list(more.id, limit=1)
    assert [item.id for page in page.iter_pages() for item in page.data] == [items[1].id, items[0].id]


def test_the_output_obeys_a_schema(client: OpenAI) -> None:
    class Place(BaseModel):
        name: str
        rivers: int

    said = client.responses.parse(model="sim", input="where?", text_format=Place)
    assert isinstance(said.output_parsed, Place)
    assert said.text is not None
    assert said.text.format is not None
    assert said.text.format.type == "json_schema"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"conversation": "c"}, "conversation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"frequency": 1}, "frequency"),
    ],
)
def test_what_is_not_supported_is_told_and_nothing_is_kept(
    client: OpenAI, user: User, more: dict[str, object], param: str
) -> None:
    before = newest(user)
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model="sim", input="x", extra_body=more)
    assert raised.value.param == param
    assert newest(user) == before


@pytest.mark.parametrize(
    "query",
    ["?stream=maybe", "?stream=true&starting_after=x", "?starting_after=1", "?include=x", "?include_obfuscation=true"],
)  # fmt: skip
def test_a_malformed_query_is_told(client: OpenAI, user: User, query: str) -> None:
    name = client.responses.create(model="sim", input="think").id
    assert user.ask("GET", f"/v1/responses/{name}{query}").status == 400


def test_a_failing_endpoint_is_an_error_before_and_an_event_behind_the_head(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model="broken", input="x", stream=stream)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="absent", input="x")
    events = dumped(client.responses.create(model="broken", input="x", background=True, stream=True))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    name = events[0]["response"]["id"]
    assert client.responses.retrieve(name).status == "failed"
    with pytest.raises(openai.BadRequestError, match="failed"):
        client.responses.create(model="sim", input="x", previous_response_id=name)


def test_the_same_key_and_body_is_the_same_response(client: OpenAI) -> None:
    def create(key: str, text: str, *, stream: bool = False) -> Any:  # noqa: ANN401 - either form
        headers = {"Idempotency-Key": f"{key} {stream}"}
        return client.responses.create(model="sim", input=text, stream=stream, extra_headers=headers)

    assert create("one", "think").to_dict() == create("one", "think").to_dict()
    assert dumped(create("one", "think", stream=True)) == dumped(create("one", "think", stream=True))
    with pytest.raises(openai.ConflictError):
        create("one", "other")


def test_a_deleted_response_is_gone_and_its_use_stays(client: OpenAI, user: User) -> None:
    name = client.responses.create(model="sim", input="think of a secret").id
    request = name.replace("resp_", "req_")
    client.responses.delete(name)
    for look in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            look(name)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="sim", input="x", previous_response_id=name)
    told = user.status(request)
    assert told["status"] == "completed"
    assert told["token_usage"]["completion_tokens"] == 7
    assert "four" not in json.dumps([told, user.poll(request)])


def test_what_is_not_to_be_stored_is_erased(client: OpenAI, user: User) -> None:
    events = dumped(client.responses.create(model="sim", input="think", store=False, stream=True))
    assert events[-1]["response"]["output"][1]["content"][0]["text"] == "it is four"
    name = events[0]["response"]["id"]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(name)
    request = name.replace("resp_", "req_")
    waiting(lambda: "four" not in json.dumps(user.poll(request)) or None, "it is erased")


def test_what_is_not_to_be_stored_is_erased_when_it_fails(client: OpenAI, door: GatewayProcess) -> None:
    with pytest.raises(openai.APIStatusError):
        client.responses.create(model="broken", input="a word for nobody", store=False)
    with contextlib.closing(sqlite3.connect(f"file:{door.home / 'gateway.db'}?mode=ro", uri=True)) as file:

        def erased() -> bool | None:
            bodies = [body for (body,) in file.execute("SELECT body FROM gateway_requests")]
            return None if any(b"a word for nobody" in body for body in bodies) else True

        waiting(erased, "it is erased")


def test_a_stranger_sees_nothing(client: OpenAI, user: User, stranger: User) -> None:
    name = client.responses.create(model="sim", input="think", background=True).id
    ended(client, name)
    routes = [(method, path) for path, methods in ROUTES.items() for method in methods]
    named = [(method, path) for method, path in routes if path.startswith("/v1/responses/")]
    assert len(named) == 4
    for method, path in (*named, ("GET", "/v1/responses/{id}?stream=true&starting_after=0")):
        assert stranger.ask(method, path.replace("{id}", name)).status == 404, path
    body = {"model": "sim", "input": "x", "previous_response_id": name}
    assert stranger.ask("POST", "/v1/responses", body).status == 400
    # A request that came through another door is no response.
    other = user.submit(mode="single").replace("req_", "resp_")
    assert user.ask("GET", f"/v1/responses/{other}").status == 404


def test_responses_count_against_limits_and_looking_does_not(door: GatewayProcess) -> None:
    client = door.client(member(door, "frugal", requests=1))
    name = client.responses.create(model="sim", input="think").id
    for _ in range(3):
        assert client.responses.retrieve(name).status == "completed"
    for background in (False, True):
        with pytest.raises(openai.RateLimitError):
            client.responses.create(model="sim", input="think", background=background)


def test_a_gateway_that_is_killed_goes_on_with_the_same_sequence(slow: SimProcess) -> None:
    with gateway(SETTINGS + endpoint("slow", slow.url, model="slow")) as door:
        client = door.client()
        waits = client.responses.create(model="slow", input="a", max_output_tokens=50, background=True)
        stream = client.responses.create(
            model="slow", input="b", max_output_tokens=2000, background=True, stream=True
        )
        events: list[dict[str, Any]] = []
        for event in stream:
            events.append(event.to_dict())
            if len(events) == 20:
                break
        door.stop(signal.SIGKILL)
        stream.close()
        door.start()
        client = door.client()
        name, last = events[0]["response"]["id"], events[-1]["sequence_number"]
        events += dumped(client.responses.retrieve(name, stream=True, starting_after=last))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        # What was seen is not said twice, so the answer ends where its teller was lost.
        assert events[-1]["type"] == "response.failed"
        assert events == dumped(client.responses.retrieve(name, stream=True))
        # Of the other nothing was told yet: it is done again.
        again = ended(client, waits.id)
        assert again.usage is not None
        assert again.usage.output_tokens == 50


def test_all_of_it_is_charged_once(door: GatewayProcess, client: OpenAI) -> None:
    request = client.responses.create(model="sim", input="think").id.replace("resp_", "req_")
    rows = waiting(lambda: rows if request in (rows := charged(door)) else None, "its row")
    assert len(set(rows)) == len(rows)

"""Responses and batches over PostgreSQL, Redis, RabbitMQ and Kafka: begun at one gateway, gone on with at another."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch
from tests.factories.gateways import endpoint
from tests.factories.queued import ASK, waiting
from tests.factories.scaled import Child, Scaled, scaled

from tokenweir.sim.process import SimProcess

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(300)]

SETTINGS = (
    '[worker]\nlease = "3s"\nbackoff = "20ms"\nsweep_interval = "1s"\nconcurrency = 4\n'
    "[gateway]\nbatch_lines = 4\n"
)
LINES = 50
CHAT = "/v1/chat/completions"


@pytest.fixture
def made(service_urls: dict[str, str], tmp_path: Path) -> Generator[Scaled]:
    with (
        SimProcess(ttft="constant:100ms", itl="constant:10ms") as sim,
        scaled(tmp_path, service_urls, SETTINGS + endpoint("one", sim.url)) as deployed,
    ):
        yield deployed


def client(made: Scaled, door: Child) -> OpenAI:
    return OpenAI(base_url=f"{door.url}/v1", api_key=made.key, max_retries=0, timeout=60)


def _is_resumed(one: OpenAI, other: OpenAI) -> None:
    stream = one.responses.create(model="sim", input="x", max_output_tokens=60, background=True, stream=True)
    events: list[dict[str, Any]] = []
    for event in stream:
        events.append(event.to_dict())
        if len(events) == 12:
            break
    stream.close()
    name, last = events[0]["response"]["id"], events[-1]["sequence_number"]
    events += [event.to_dict() for event in other.responses.retrieve(name, stream=True, starting_after=last)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert sum(event["type"] == "response.output_text.delta" for event in events) == 60
    assert other.responses.retrieve(name).to_dict() == events[-1]["response"]
    assert [event.to_dict() for event in one.responses.retrieve(name, stream=True)] == events
    other.responses.delete(name)


def _is_cancelled(one: OpenAI, other: OpenAI) -> None:
    stream = one.responses.create(
        model="sim", input="x", max_output_tokens=4000, background=True, stream=True
    )
    name = ""
    for event in stream:
        if event.type == "response.created":
            name = event.response.id
        if event.type == "response.in_progress":
            assert other.responses.cancel(name).status == "cancelled"
    assert one.responses.retrieve(name).status == "cancelled"


def _counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def test_what_one_gateway_began_another_goes_on_with(made: Scaled) -> None:
    doors = [("gateway", "--port", "0"), ("gateway", "--port", "0")]
    first, second, _, _ = made.start(*doors, ("worker",), ("collector",))
    one, other = client(made, first), client(made, second)
    assert one.responses.create(model="sim", input="x", max_output_tokens=3).usage is not None
    _is_resumed(one, other)
    _is_cancelled(one, other)
    before = set(made.ledger())

    body = {"model": "sim", "messages": ASK, "max_tokens": 2}
    lines = [{"custom_id": f"{n}", "method": "POST", "url": CHAT, "body": body} for n in range(LINES)]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = one.files.create(file=("lines.jsonl", data), purpose="batch")
    assert other.files.content(file.id).read() == data
    batch = one.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    waiting(lambda: _counts(other.batches.retrieve(batch.id))[1] or None, "some lines are done")
    # Whichever of them works on it: when both have been lost, another goes on.
    first.kill()
    second.kill()
    (third,) = made.start(("gateway", "--port", "0"))
    again = client(made, third)

    def ended() -> Batch | None:
        found = again.batches.retrieve(batch.id)
        return found if found.status in {"completed", "failed"} else None

    done = waiting(ended, "the batch is done")
    assert (done.status, _counts(done)) == ("completed", (LINES, LINES, 0))
    assert done.output_file_id is not None
    out = [json.loads(line) for line in again.files.content(done.output_file_id).text.splitlines()]
    assert [line["custom_id"] for line in out] == [line["custom_id"] for line in lines]
    rows = set(made.ledger()) - before
    assert rows == {line["response"]["request_id"] for line in out}
    assert made.verified() == []

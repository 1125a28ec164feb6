from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest
from tests.integration.sim.wire import TIMEOUT_S, Wire, running

from tokenweir.backends.registry import backend
from tokenweir.core.events import Completed, Event, Failed, Token, Usage, text
from tokenweir.core.requests import GenerateRequest, Kind, Message, Sampling
from tokenweir.ports.backend import HttpRequest, HttpResponse

MESSAGES = (Message(role="user", content="say some words"),)
CASES: list[tuple[str, Kind]] = [
    ("openai", "chat"),
    ("openai", "completion"),
    ("sglang", "chat"),
    ("sglang", "completion"),
    ("sglang_jax", "completion"),
    ("sim", "chat"),
    ("sim", "completion"),
]


def exchange(wire: Wire, request: HttpRequest, *more: tuple[str, str]) -> HttpResponse:
    conn = http.client.HTTPConnection(*wire.address, timeout=TIMEOUT_S)
    try:
        conn.request(request.method, request.path, request.body, dict([*request.headers, *more]))
        answer = conn.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return HttpResponse(status=answer.status, headers=headers, body=answer.read())
    finally:
        conn.close()


def ask(kind: Kind, *, stream: bool, tokens: int = 12) -> GenerateRequest:
    return GenerateRequest(
        kind=kind,
        model="sim",
        messages=MESSAGES if kind == "chat" else (),
        prompt="say some words" if kind == "completion" else "",
        inputs=("a lake", "a road") if kind == "embedding" else (),
        sampling=Sampling(max_tokens=tokens, ignore_eos=True),
        stream=stream,
    )


def decode(wire: Wire, name: str, request: GenerateRequest, *more: tuple[str, str]) -> list[Event]:
    engine = backend(name)
    answer = exchange(wire, engine.encode(request), *more)
    assert answer.status == 200, answer.body
    decoder = engine.decoder(request)
    return [event for _, event in [*decoder.feed(answer.body), *decoder.end()]]


@pytest.fixture(scope="module")
def chunky() -> Iterator[Wire]:
    with running(tokens_per_chunk="uniform:1..4") as one:
        yield one


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_every_backend_of_ours_reads_the_simulator(
    wire: Wire, chunky: Wire, name: str, kind: Kind, *, several: bool
) -> None:
    server = chunky if several else wire
    streamed = decode(server, name, ask(kind, stream=True))
    whole = decode(server, name, ask(kind, stream=False))
    assert isinstance(streamed[-1], Completed)
    assert isinstance(whole[-1], Completed)
    assert streamed[-1].finish_reason == whole[-1].finish_reason == "length"
    assert text(streamed) == text(whole)
    assert len(text(whole).split()) == 12
    for events in (streamed, whole):
        usage = [event for event in events if isinstance(event, Usage)][-1]
        assert (usage.input_tokens, usage.output_tokens) == (3, 12)
    stamps = [event.sent_ns for event in streamed if isinstance(event, Token)]
    assert all(stamps)
    assert len(stamps) == (len(set(stamps)))
    assert len(stamps) <= 12 if several else len(stamps) == 12


def test_embeddings_are_read(wire: Wire) -> None:
    done = decode(wire, "openai", ask("embedding", stream=False))[-1]
    assert isinstance(done, Completed)
    assert len(done.embeddings) == 2


@pytest.mark.parametrize("name", ["openai", "sglang", "sglang_jax", "sim"])
def test_every_backend_of_ours_can_identify_and_check_it(wire: Wire, name: str) -> None:
    engine = backend(name)
    assert exchange(wire, engine.health()).status == 200
    identity = engine.identity([exchange(wire, probe) for probe in engine.identity_probes()])
    assert identity.model == "sim"
    if name == "sim":
        assert identity.version
        assert identity.revision
        assert identity.flags["itl"] == "constant:500us"


@pytest.mark.parametrize("fault", ["malformed;after=2", "error;after=2", "no-finish", "not-sse"])
def test_faults_are_failures_to_our_backends(wire: Wire, fault: str) -> None:
    events = decode(wire, "openai", ask("chat", stream=True), ("x-sim-fault", fault))
    assert isinstance(events[-1], Failed)

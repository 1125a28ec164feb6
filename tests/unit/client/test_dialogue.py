from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Event, Request, TextMessage

from tokenweir.client import Options
from tokenweir.client.dialogue import Dialogue, Open
from tokenweir.client.plans import Planner
from tokenweir.client.steps import Came, Hear, Lost, Rest
from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import InputError
from tokenweir.core.events import Event as Told

KEY = "weir_01M7ZF00000000000000000000_secret"
LONG = Options(patience_ns=3600 * 10**9)


def events(count: int) -> list[dict[str, Any]]:
    """Return the events of a request whose answer has so many tokens."""
    kinds: list[dict[str, Any]] = [
        {"type": "started", "attempt": 1, "model": "m"},
        *({"type": "token", "text": f" {number}"} for number in range(count)),
        {"type": "completed", "finish_reason": "stop"},
    ]
    return [{"seq": seq, **each} for seq, each in enumerate(kinds)]


class FakeGateway:
    """A gateway's side of the protocol over connections that are cut: ``cuts`` are the bytes that each carries."""

    def __init__(self, cuts: list[int], piece: int = 1 << 16) -> None:
        self._cuts = cuts
        self._piece = piece
        self._state = WSConnection(ConnectionType.SERVER)
        self._left = b""
        self._cut = False
        self._bytes = 0
        self.connections = 0
        self.names: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    def open(self) -> None:
        self.connections += 1
        self._state, self._left = WSConnection(ConnectionType.SERVER), b""
        self._cut = bool(self._cuts)
        self._bytes = self._cuts.pop(0) if self._cuts else 0

    def take(self, data: bytes) -> None:
        """Take what the client sends."""
        self._state.receive_data(data)
        for event in self._state.events():
            match event:
                case Request():
                    assert ("authorization", f"Bearer {KEY}") in {
                        (name.decode(), value.decode()) for name, value in event.extra_headers
                    }
                    self._send(AcceptConnection())
                    self._say(type="ready")
                case TextMessage() if self._state.state is ConnectionState.OPEN:
                    self._answer(json.loads(event.data))
                case _:
                    pass

    def hear(self) -> bytes:
        """Return the next piece; b"" is the end of the connection."""
        if not self._left and not self._cut:
            self._say(type="heartbeat")
        size = min(self._piece, self._bytes) if self._cut else self._piece
        piece, self._left = self._left[:size], self._left[size:]
        self._bytes -= len(piece)
        return piece

    def _answer(self, said: dict[str, Any]) -> None:
        if said["type"] == "submit":
            name = self.names.setdefault(said["idempotency_key"], f"req_{len(self.names)}")
            self.counts[name] = said["body"]["max_tokens"]
            self._say(type="submitted", ref=said["ref"], request_id=name, status_url="", events_url="")
            self._follow(name, -1, said["ref"])
        if said["type"] == "resume":
            self._follow(said["request_id"], said["after"], said["ref"])

    def _follow(self, name: str, after: int, ref: str) -> None:
        for each in events(self.counts[name])[after + 1 :]:
            self._say(type="event", request_id=name, event=each)
        self._say(type="end", ref=ref, request_id=name, ended=True)

    def _say(self, **message: Any) -> None:  # noqa: ANN401 - JSON
        self._send(TextMessage(data=json.dumps(message)))

    def _send(self, event: Event) -> None:
        self._left += self._state.send(event)

    def close(self, code: int) -> None:
        """Close the WebSocket."""
        self._send(CloseConnection(code=code))


def until(dialogue: Dialogue, gateway: FakeGateway, clock: VirtualClock, come: Callable[[], bool]) -> None:
    """Move bytes until something has come."""
    while not come():
        dialogue.check()
        step = dialogue.step()
        came: Came = None
        match step:
            case Open():
                gateway.open()
            case Rest():
                clock.advance(step.rest_ns)
            case Hear():
                gateway.take(dialogue.outgoing())
                came = gateway.hear() or Lost("cut")
        dialogue.came(step, came)


@given(
    cuts=st.lists(st.integers(0, 4000), max_size=12),
    piece=st.integers(1, 700),
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=5),
)
def test_however_a_socket_is_cut_each_request_is_taken_on_and_each_event_told_once(
    cuts: list[int], piece: int, counts: list[int]
) -> None:
    clock = VirtualClock()
    # A gateway that never answered is taken for a slip in its URL.
    gateway = FakeGateway([600, *cuts], piece)
    dialogue = Planner("http://a", KEY, LONG, clock).dialogue()
    names: list[str] = []
    for number, count in enumerate(counts):
        said = dialogue.submit(b'{"max_tokens":%d}' % count, f"key {number}", follow=True)
        until(dialogue, gateway, clock, lambda said=said: said.answered)
        assert said.submitted is not None
        names.append(said.submitted.request_id)
    told: dict[str, list[Told]] = {name: [] for name in names}
    while True:
        until(dialogue, gateway, clock, dialogue.has_any)
        taken = dialogue.take_any()
        if taken is None:
            break
        told[taken[0]].append(taken[1])
    assert names == [f"req_{number}" for number in range(len(counts))]
    assert [len(told[name]) for name in names] == [count + 2 for count in counts]
    assert all([event.seq for event in each] == list(range(len(each))) for each in told.values())


def test_what_nobody_takes_is_kept_up_to_a_bound_and_asked_for_again() -> None:
    clock = VirtualClock()
    gateway = FakeGateway([])
    dialogue = Planner("http://a", KEY, LONG, clock).dialogue()
    dialogue.submit(b'{"max_tokens":5000}', "long", follow=True)
    short = dialogue.submit(b'{"max_tokens":1}', "short", follow=True)
    until(dialogue, gateway, clock, lambda: short.answered)
    dialogue.streamed("req_1", begins=True)
    while dialogue.follows("req_1"):
        until(dialogue, gateway, clock, lambda: dialogue.has("req_1"))
        dialogue.take("req_1")
    # All of the long one has come by now; so much of it was kept.
    kept = 0
    while dialogue.has("req_0"):
        event = dialogue.take("req_0")
        assert event is not None
        assert event.seq == kept
        kept += 1
    assert kept == 1024
    while dialogue.follows("req_0"):
        until(dialogue, gateway, clock, lambda: dialogue.has("req_0"))
        event = dialogue.take("req_0")
        assert event is not None
        assert event.seq == kept
        kept += 1
    assert (kept, gateway.connections) == (5002, 1)


def test_a_gateway_that_restarts_is_come_back_to_and_one_that_takes_no_long_message_is_not() -> None:
    clock = VirtualClock()
    gateway = FakeGateway([])
    dialogue = Planner("http://a", KEY, LONG, clock).dialogue()
    said = dialogue.submit(b'{"max_tokens":1}', "one", follow=True)
    until(dialogue, gateway, clock, lambda: said.answered)
    gateway.close(1012)
    other = dialogue.submit(b'{"max_tokens":1}', "two", follow=True)
    until(dialogue, gateway, clock, lambda: other.answered)
    assert gateway.connections == 2
    gateway.close(1009)
    last = dialogue.submit(b'{"max_tokens":1}', "three", follow=True)
    with pytest.raises(InputError, match="longer than the gateway takes"):
        until(dialogue, gateway, clock, lambda: last.answered)
    assert gateway.connections == 2

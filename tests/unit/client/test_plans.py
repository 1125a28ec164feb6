from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.client.options import Options, Origin
from tokenweir.client.plans import Planner
from tokenweir.client.steps import Answer, Ask, Came, Hear, Lost, Plan, Rest, Step, Tell
from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import (
    DeadlineError,
    InputError,
    OverloadedError,
    ProtocolError,
    QuotaExceededError,
    UnauthorizedError,
    UnreachableError,
    UpstreamError,
    WeirError,
)
from tokenweir.core.events import Event

S = 1_000_000_000
KEY = "weir_key"
ACCEPTED = Answer(202, {}, b'{"request_id":"req_1","status_url":"/s","events_url":"/e"}')
BODY: dict[str, object] = {"model": "good", "messages": []}


def events(count: int) -> list[dict[str, Any]]:
    tokens = [{"type": "token", "seq": seq, "text": f"<{seq}>"} for seq in range(2, 2 + count)]
    return [
        {"type": "accepted", "seq": 0, "request_id": "req_1"},
        {"type": "queued", "seq": 1},
        *tokens,
        {"type": "completed", "seq": 2 + count, "finish_reason": "stop"},
    ]


def refusal(status: int, code: str, **headers: str) -> Answer:
    error = {"message": "no; wait", "type": "t", "param": None, "code": code, "mend": "wait"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, named, json.dumps({"error": error}).encode())


def played(plan: Plan[object], gateway: Callable[[Step], Came], clock: VirtualClock) -> list[Step]:
    """Do a plan against ``gateway`` in no time; return its steps."""
    steps: list[Step] = []
    came: Came = None
    while True:
        try:
            step = plan.send(came)
        except StopIteration:
            return steps
        steps.append(step)
        came = None
        match step:
            case Rest():
                clock.advance(step.rest_ns)
            case Tell():
                pass
            case _:
                came = gateway(step)


class Stream:
    """A gateway's stream of events that is cut at will: ``cuts`` are the bytes that each connection carries."""

    def __init__(self, cuts: list[int], pieces: int, count: int) -> None:
        self._cuts = cuts
        self._size = pieces
        self._events = events(count)
        self._left = b""
        self._cut = False
        self.asked: list[str] = []

    def __call__(self, step: Step) -> Came:
        if isinstance(step, Ask):
            last = dict(step.question.headers).get("last-event-id", "-1")
            self.asked.append(last)
            frames = [
                f"id: {each['seq']}\r\nevent: {each['type']}\ndata: {json.dumps(each)}\n\n".encode()
                for each in self._events
                if each["seq"] > int(last)
            ]
            self._left = b": hello\n\n" + b"".join(frames)
            self._cut = bool(self._cuts)
            if self._cut:
                self._left = self._left[: self._cuts.pop()]
            return Answer(200, {})
        piece, self._left = self._left[: self._size], self._left[self._size :]
        return piece or (Lost("cut") if self._cut else b"")


@given(cuts=st.lists(st.integers(0, 900), max_size=12), pieces=st.integers(1, 400), count=st.integers(0, 20))
def test_however_a_stream_is_cut_each_event_is_told_once(cuts: list[int], pieces: int, count: int) -> None:
    clock = VirtualClock()
    stream = Stream(list(cuts), pieces, count)
    steps = played(Planner("http://a", KEY, Options(), clock).follow("req_1", -1), stream, clock)
    told: list[Event] = [step.event for step in steps if isinstance(step, Tell)]
    assert [event.seq for event in told] == list(range(count + 3))
    assert [int(each) for each in stream.asked] == sorted(int(each) for each in stream.asked)


def test_a_gap_between_events_is_told_and_not_passed_over() -> None:
    clock = VirtualClock()

    def gateway(step: Step) -> Came:
        frame = b'id: 3\nevent: queued\ndata: {"type":"queued","seq":3}\n\n'
        return Answer(200, {}) if isinstance(step, Ask) else frame

    with pytest.raises(ProtocolError, match="after the event 1 came 3"):
        played(Planner("http://a", KEY, Options(), clock).follow("req_1", 1), gateway, clock)


def test_an_event_of_a_later_version_is_passed_over() -> None:
    clock = VirtualClock()
    later = b'id: 0\nevent: new\ndata: {"type":"new","seq":0}\n\n'
    last = b'id: 1\nevent: cancelled\ndata: {"type":"cancelled","seq":1}\n\n'
    frames = [later + last, b""]
    plan = Planner("http://a", KEY, Options(), clock).follow("req_1", -1)
    steps = played(plan, lambda step: Answer(200, {}) if isinstance(step, Ask) else frames.pop(0), clock)
    assert [step.event.seq for step in steps if isinstance(step, Tell)] == [1]


def test_retry_after_is_obeyed_and_the_same_idempotency_key_is_sent_again() -> None:
    clock = VirtualClock()
    answers = [
        refusal(503, "overloaded", retry_after="7"),
        Lost("cut"),
        refusal(429, "rate_limit_exceeded", retry_after="3"),
        ACCEPTED,
    ]
    plan = Planner("http://a", KEY, Options(), clock).submit(BODY, None)
    steps = played(plan, lambda _: answers.pop(0), clock)
    rests = [step.rest_ns for step in steps if isinstance(step, Rest)]
    assert rests[0] == 7 * S
    assert rests[1] < 5 * S
    assert rests[2] == 3 * S
    keys = {dict(step.question.headers)["idempotency-key"] for step in steps if isinstance(step, Ask)}
    assert len(keys) == 1


def test_a_limit_that_lasts_longer_than_the_patience_is_raised_at_once() -> None:
    clock = VirtualClock()
    answer = refusal(429, "rate_limit_exceeded", retry_after="3600")
    with pytest.raises(QuotaExceededError, match="no; wait") as raised:
        played(Planner("http://a", KEY, Options(), clock).submit(BODY, None), lambda _: answer, clock)
    assert raised.value.retry_after_ns == 3600 * S
    assert clock.monotonic_ns() == 0


def test_the_next_gateway_is_asked_at_once_and_a_quota_asks_none_of_them() -> None:
    clock = VirtualClock()
    planner = Planner(["http://a", "http://b:81/proxy/v1"], KEY, Options(), clock)

    def gateway(step: Step) -> Came:
        assert isinstance(step, Ask)
        return Lost("refused") if step.origin.host == "a" else ACCEPTED

    steps = played(planner.submit(BODY, None), gateway, clock)
    assert [step.origin.host for step in steps if isinstance(step, Ask)] == ["a", "b"]
    assert clock.monotonic_ns() == 0
    again = played(planner.submit(BODY, None), gateway, clock)
    assert [step.origin.prefix for step in again if isinstance(step, Ask)] == ["/proxy"]
    answers: list[Came] = [refusal(429, "rate_limit_exceeded", retry_after="2"), ACCEPTED]
    limited = played(planner.submit(BODY, None), lambda _: answers.pop(0), clock)
    assert [step.origin.host for step in limited if isinstance(step, Ask)] == ["b", "b"]


def test_patience_ends_and_is_counted_anew_when_something_has_come() -> None:
    clock = VirtualClock()
    planner = Planner("http://a", KEY, Options(patience_ns=20 * S), clock)
    with pytest.raises(UnreachableError, match="http://a: refused") as raised:
        played(planner.submit(BODY, None), lambda _: Lost("refused"), clock)
    assert clock.monotonic_ns() == 0, "an address where nothing ever answered is taken for a slip"
    assert "URL" in raised.value.mend
    played(planner.submit(BODY, None), lambda _: ACCEPTED, clock)
    with pytest.raises(UnreachableError, match="for 20s"):
        played(planner.submit(BODY, None), lambda _: Lost("refused"), clock)
    assert 10 * S < clock.monotonic_ns() <= 20 * S


def test_a_stream_that_is_always_ended_before_its_first_event_is_given_up() -> None:
    clock = VirtualClock()
    first = [b"retry: 1000\n\n", b""]
    pieces: list[bytes] = []

    def gateway(step: Step) -> Came:
        if isinstance(step, Ask):
            pieces[:] = first
            return Answer(200, {})
        return pieces.pop(0)

    with pytest.raises(UnreachableError, match="ended early"):
        played(Planner("http://a", KEY, Options(), clock).follow("req_1", -1), gateway, clock)
    assert clock.monotonic_ns() > 30 * S


def test_waiting_ends_at_its_deadline_although_heartbeats_come() -> None:
    clock = VirtualClock()
    status = {"id": "req_1", "request_id": "req_1", "status": "running", "mode": "stream", "model": "m",
              "priority": 5, "attempt": 1, "created_at": 1, "cancel_requested": False, "last_seq": 2,
              "status_url": "", "events_url": ""}  # fmt: skip

    def gateway(step: Step) -> Came:
        if isinstance(step, Ask):
            return Answer(200, {}, b"" if step.streamed else json.dumps(status).encode())
        assert isinstance(step, Hear)
        clock.advance(min(step.limit_ns, 15 * S))
        return b": heartbeat\n\n"

    with pytest.raises(DeadlineError, match="not ended"):
        played(Planner("http://a", KEY, Options(), clock).wait("req_1", 100 * S), gateway, clock)
    assert clock.monotonic_ns() == 100 * S


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(401, "invalid_api_key"), UnauthorizedError),
        (refusal(500, "internal"), UpstreamError),
        (refusal(400, "bad_input"), InputError),
        (Answer(502, {}, b"<html>bad gateway</html>"), OverloadedError),
        (Answer(200, {}, b"<html>a page</html>"), ProtocolError),
        (Answer(302, {"location": "/login"}), ProtocolError),
    ],
)
def test_a_refusal_is_an_error_of_its_kind(answer: Answer, error: type[WeirError]) -> None:
    clock = VirtualClock()
    with pytest.raises(error):
        played(Planner("http://a", KEY, Options(), clock).status("req_1"), lambda _: answer, clock)


@pytest.mark.parametrize("key", ["", "a\nb", " a", "ä", "k" * 256])
def test_an_idempotency_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="idempotency key"):
        played(Planner("http://a", KEY, Options()).submit(BODY, key), lambda _: ACCEPTED, VirtualClock())


def test_a_url_in_any_script_can_be_asked() -> None:
    origin = Origin.parse("https://bücher.example/büro/v1/")
    assert (origin.host, origin.prefix, origin.port) == ("xn--bcher-kva.example", "/b%C3%BCro", 443)
    assert Origin.parse("http://[::1]:8080").authority == "[::1]:8080"


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8080", "ftp://a", "http://", "http://a:x", "http://a?x=1", f"http://{'a' * 70}"]
)
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(InputError):
        Planner(url, KEY, Options())


@pytest.mark.parametrize("key", ["", "weir_a\r\nx: y", "weir a", "weir_ä"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InputError) as raised:
        Planner("http://a", key, Options())
    assert not key or key not in str(raised.value)

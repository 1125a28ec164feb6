from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tokenweir.poller import READ, WRITE, Poller, SelectorPoller, make_poller

MS = 1_000_000
KINDS: list[Callable[[], Poller]] = [make_poller, SelectorPoller]


@pytest.fixture(params=KINDS, ids=["best", "selector"])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    one: Poller = request.param()
    yield one
    one.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(0.0)
        yield left, right


def soon() -> int:
    return time.monotonic_ns() + 3 * MS


def test_what_can_be_read_and_written_is_told(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    poller.watch(left.fileno(), READ)
    assert left.fileno() not in dict(poller.wait(soon()))
    right.send(b"x")
    assert dict(poller.wait(None))[left.fileno()] & READ
    poller.watch(left.fileno(), READ | WRITE)
    assert dict(poller.wait(None))[left.fileno()] == READ | WRITE
    poller.forget(left.fileno())
    assert left.fileno() not in dict(poller.wait(soon()))


def test_a_peer_that_left_can_be_read(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    poller.watch(left.fileno(), READ)
    right.close()
    assert dict(poller.wait(None))[left.fileno()] & READ


def test_the_wait_ends_at_the_deadline_and_not_before(poller: Poller) -> None:
    for _ in range(20):
        until = time.monotonic_ns() + 2 * MS
        while time.monotonic_ns() < until:
            poller.wait(until)
        assert time.monotonic_ns() >= until


def test_a_deadline_that_has_passed_does_not_wait(poller: Poller) -> None:
    began = time.monotonic_ns()
    for _ in range(100):
        poller.wait(began)
    assert time.monotonic_ns() - began < 1_000 * MS


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")
def test_deadlines_are_kept_to_a_fraction_of_a_millisecond() -> None:
    poller = make_poller()
    late: list[int] = []
    for _ in range(50):
        until = time.monotonic_ns() + MS
        poller.wait(until)
        late.append(time.monotonic_ns() - until)
    poller.close()
    assert min(late) >= 0
    assert sorted(late)[5] < MS // 2

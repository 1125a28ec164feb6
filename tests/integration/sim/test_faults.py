from __future__ import annotations

import itertools
import json
import time

import pytest
from tests.integration.sim.wire import Wire, chat, post, read_all, running

PATH = "/v1/chat/completions"
STREAM = chat(max_tokens=8, stream=True, stream_options={"include_usage": True})
WHOLE = chat(max_tokens=8)


def order(fault: str, body: object = STREAM, path: str = PATH) -> bytes:
    return post(path, body, f"x-sim-fault: {fault}")


def tokens(data: bytes) -> int:
    return data.count(b'"delta":{"content":" ')


@pytest.mark.parametrize("status", [429, 500, 503, 418])
def test_a_status_comes_with_an_openai_body(wire: Wire, status: int) -> None:
    answer = wire.exchange(order(f"{status};retry-after=2"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"retry-after: 2" in head
    assert json.loads(body)["error"]["code"] == status


def test_slow_headers_stop_after_the_first_line(wire: Wire) -> None:
    began = time.monotonic()
    with wire.socket() as sock:
        sock.sendall(order("slow-headers;for=600ms"))
        first = sock.recv(65_536)
        assert first == b"HTTP/1.1 200 OK\r\n"
        assert time.monotonic() - began < 0.6
        rest = read_all(sock)
    assert time.monotonic() - began >= 0.6
    assert rest.startswith(b"content-type: text/event-stream")
    assert tokens(rest) == 8


def test_slow_headers_befall_whole_answers_too(wire: Wire) -> None:
    answer = wire.exchange(order("slow-headers;for=50ms", WHOLE))
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 1
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 8


def test_a_stall_holds_back_one_token_and_then_goes_on(wire: Wire) -> None:
    answer = wire.exchange(order("stall;after=3;for=200ms"))
    stamps = [int(part.split(b"}")[0]) for part in answer.split(b'"sent_ns":')[1:]][1:9]
    gaps = [b - a for a, b in itertools.pairwise(stamps)]
    assert gaps.index(max(gaps)) == 2
    assert max(gaps) >= 200_000_000
    assert tokens(answer) == 8
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_disconnect_ends_the_stream_before_its_time(wire: Wire) -> None:
    answer = wire.exchange(order("disconnect;after=3"))
    assert tokens(answer) == 3
    assert not answer.endswith(b"0\r\n\r\n")
    whole = wire.exchange(order("disconnect", WHOLE))
    head, _, body = whole.partition(b"\r\n\r\n")
    stated = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert 0 < len(body) < stated


def test_a_reset_is_seen_as_one(wire: Wire) -> None:
    answer = wire.exchange(order("reset;after=3"))
    assert answer.endswith(b"<reset>")


def test_a_malformed_event_stands_among_good_ones(wire: Wire) -> None:
    answer = wire.exchange(order("malformed;after=3"))
    before, _, after = answer.partition(b'data: {"id":"broken"')
    assert (tokens(before), tokens(after)) == (3, 5)
    with pytest.raises(json.JSONDecodeError):
        json.loads(wire.exchange(order("malformed", WHOLE)).partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("after", [0, 3])
def test_an_error_inside_the_stream_ends_it_properly(wire: Wire, after: int) -> None:
    answer = wire.exchange(order(f"error;after={after}"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert tokens(answer) == after
    last = answer.rsplit(b"data: ", 1)[1]
    assert json.loads(last.partition(b"\n\n")[0])["error"]["message"]
    assert answer.endswith(b"0\r\n\r\n")
    whole = wire.exchange(order("error", WHOLE)).partition(b"\r\n\r\n")[2]
    assert "error" in json.loads(whole)


def test_endings_can_be_missing(wire: Wire) -> None:
    no_done = wire.exchange(order("no-done"))
    assert b"[DONE]" not in no_done
    assert b'"finish_reason":"length"' in no_done
    no_finish = wire.exchange(order("no-finish"))
    assert tokens(no_finish) == 8
    assert b'"finish_reason":"length"' not in no_finish
    assert b"usage" not in no_finish
    native = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 4}}
    answer = wire.exchange(order("no-finish", native, "/generate"))
    assert answer.count(b"data: ") == 3
    assert answer.endswith(b"0\r\n\r\n")


def test_usage_can_be_wrong(wire: Wire) -> None:
    usage = json.loads(wire.exchange(order("wrong-usage;factor=3", WHOLE)).partition(b"\r\n\r\n")[2])["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 24)


def test_an_answer_can_be_no_stream_or_say_that_it_is_none(wire: Wire) -> None:
    page = wire.exchange(order("not-sse"))
    assert b"content-type: text/html" in page
    assert b"<!doctype html>" in page
    mislabelled = wire.exchange(order("content-type;value=text/plain"))
    assert b"content-type: text/plain\r\n" in mislabelled
    assert tokens(mislabelled) == 8


def test_a_connection_can_close_without_an_answer(wire: Wire) -> None:
    assert wire.exchange(order("close")) in {b"", b"<reset>"}


def test_an_unknown_fault_is_refused(wire: Wire) -> None:
    answer = wire.exchange(order("explode"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"explode" in answer


def test_a_fault_befalls_embeddings_too(wire: Wire) -> None:
    assert wire.exchange(order("500", {"input": "a"}, "/v1/embeddings")).startswith(b"HTTP/1.1 500 ")


def test_faults_by_number_strike_those_requests_and_are_counted() -> None:
    with running(faults=("500@#2", "429@every=3")) as wire:
        statuses = [wire.ask("POST", PATH, WHOLE)[0] for _ in range(6)]
        assert statuses == [200, 500, 429, 200, 200, 429]
        truth = wire.sim.truth()
        assert (truth["received"], truth["requests"], truth["faults"]) == (6, 3, 3)
        wire.sim.reset()
        assert wire.ask("POST", PATH, WHOLE)[0] == 200
        assert wire.ask("POST", PATH, WHOLE)[0] == 500


def test_after_every_fault_the_simulator_is_empty_again(wire: Wire) -> None:
    for fault in ("disconnect;after=2", "reset;after=2", "error;after=2", "stall;after=1;for=1ms", "close"):
        wire.exchange(order(fault))
    truth = wire.sim.truth()
    assert (truth["running"], truth["waiting"], truth["used_tokens"]) == (0, 0, 0)

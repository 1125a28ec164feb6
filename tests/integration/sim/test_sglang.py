from __future__ import annotations

import itertools

from tests.integration.sim.wire import Wire, post

ASK = {"text": "some words here", "sampling_params": {"max_new_tokens": 6}}


def test_a_native_stream_is_cumulative_and_ends_with_the_reason(wire: Wire) -> None:
    events = wire.events("/generate", {**ASK, "stream": True})
    assert len(events) == 6
    for number, event in enumerate(events, 1):
        meta = event["meta_info"]
        assert len(event["text"].split()) == len(event["output_ids"]) == meta["completion_tokens"] == number
        assert (meta["finish_reason"] is None) == (number < 6)
    for before, after in itertools.pairwise(events):
        assert after["text"].startswith(before["text"])
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
        assert after["sent_ns"] > before["sent_ns"]
    last = events[-1]["meta_info"]
    assert last["finish_reason"] == {"type": "length", "length": 6}
    assert last["prompt_tokens"] == 3
    assert last["e2e_latency"] > last["first_token_latency"] > 0


def test_a_whole_native_answer_is_the_last_event_of_the_stream(wire: Wire) -> None:
    whole = wire.json("POST", "/generate", ASK)
    streamed = wire.events("/generate", {**ASK, "stream": True})[-1]
    assert (whole["text"], whole["output_ids"]) == (streamed["text"], streamed["output_ids"])
    by_ids = wire.json("POST", "/generate", {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 1}})
    assert by_ids["meta_info"]["prompt_tokens"] == 2


def test_native_errors_have_the_native_shape(wire: Wire) -> None:
    bodies: list[dict[str, object]] = [{}, {"text": "x", "sampling_params": {"temperature": -1}}]
    for body in bodies:
        status, _, data = wire.ask("POST", "/generate", body)
        assert status == 400
        assert data.startswith(b'{"error":{"message":')


def test_both_names_of_the_information_paths_answer(wire: Wire) -> None:
    assert wire.json("GET", "/model_info") == wire.json("GET", "/get_model_info")
    info = wire.json("GET", "/server_info")
    assert info == wire.json("GET", "/get_server_info")
    assert info["served_model_name"] == "sim"
    assert info["version"]


def test_health_flush_and_profile_answer(wire: Wire) -> None:
    for method, path in (("GET", "/health"), ("GET", "/health_generate"), ("POST", "/start_profile")):
        assert wire.ask(method, path)[0] == 200
    assert wire.ask("POST", "/stop_profile")[0] == 200
    status, _, data = wire.ask("POST", "/flush_cache")
    assert status == 200
    assert b"Flushed items: 0" in data


def test_the_metrics_page_counts_what_was_done(wire: Wire) -> None:
    wire.sim.reset()
    wire.events("/generate", {**ASK, "stream": True})
    status, told, data = wire.ask("GET", "/metrics")
    assert status == 200
    assert told["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in data.decode().splitlines() if not line.startswith("#"))
    assert values['sglang:num_running_reqs{model_name="sim"}'] == "0.0"
    assert values['sglang:num_requests_total{model_name="sim"}'] == "1.0"
    assert values['sglang:prompt_tokens_total{model_name="sim"}'] == "3.0"
    assert values['sglang:generation_tokens_total{model_name="sim"}'] == "6.0"
    assert values['sglang:time_to_first_token_seconds_count{model_name="sim"}'] == "1.0"
    assert values['sglang:inter_token_latency_seconds_bucket{le="+Inf",model_name="sim"}'] == "5.0"
    assert float(values['sglang:inter_token_latency_seconds_sum{model_name="sim"}']) >= 5 * 0.0004


def test_an_answer_can_be_aborted_by_its_id(wire: Wire) -> None:
    body = {"text": "x", "rid": "mine", "stream": True, "sampling_params": {"max_new_tokens": 100_000}}
    with wire.socket() as sock:
        sock.sendall(post("/generate", body))
        assert sock.recv(100)
        assert wire.ask("POST", "/abort_request", {"rid": "other"})[0] == 200
        assert wire.sim.truth()["running"] == 1
        assert wire.ask("POST", "/abort_request", {"rid": "mine"})[0] == 200
        assert wire.sim.truth()["running"] == 0
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            tail = (tail + sock.recv(65_536))[-5:]

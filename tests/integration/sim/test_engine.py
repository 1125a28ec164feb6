from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest
from tests.integration.sim.wire import Wire, chat, post, read_all, running

from tokenweir.core.errors import UpstreamError

PATH = "/v1/chat/completions"
MS = 1_000_000


def stamps(events: list[dict[str, Any]]) -> list[int]:
    return [one["sent_ns"] for one in events if one["choices"][0]["delta"].get("content")]


def gaps_ms(events: list[dict[str, Any]]) -> list[float]:
    sent = stamps(events)
    return [(b - a) / MS for a, b in itertools.pairwise(sent)]


def at_once(wire: Wire, count: int, body: object) -> list[bytes]:
    """Send ``count`` requests at the same time and return their answers."""
    answers: list[bytes] = []

    def one() -> None:
        answers.append(wire.exchange(post(PATH, body)))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_the_pace_is_kept_without_drift_and_told_by_the_truth() -> None:
    with running(ttft="constant:30ms", itl="constant:5ms") as wire:
        began = time.monotonic_ns()
        sent = stamps(wire.events(PATH, chat(max_tokens=41, stream=True)))
        assert (sent[0] - began) / MS >= 30
        assert 199 <= (sent[-1] - sent[0]) / MS < 400
        truth = wire.sim.truth()
    assert min(b - a for a, b in itertools.pairwise(sent)) > 3.8 * MS, "late chunks came in a bunch"
    assert truth["chunks"] == 41
    ttft, itl = truth["ttft_ms"], truth["itl_ms"]
    assert isinstance(ttft, dict)
    assert isinstance(itl, dict)
    assert ttft["n"] == 1
    assert itl["n"] == 40
    assert itl["mean"] == pytest.approx((sent[-1] - sent[0]) / 40 / MS, abs=1e-5)
    middle = sorted((b - a) / MS for a, b in itertools.pairwise(sent))
    assert itl["p50"] == pytest.approx((middle[19] + middle[20]) / 2, abs=0.002)
    assert itl["max"] == pytest.approx(middle[-1], abs=0.002)


def test_prefill_takes_its_time_per_token_and_a_cached_prefix_none() -> None:
    text = " ".join(["word"] * 100)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "stream": True}
    with running(ttft="constant:0s", prefill="1ms", prefix_cache_tokens=4096) as wire:
        waits: list[float] = []
        for _ in range(2):
            began = time.monotonic_ns()
            waits.append((stamps(wire.events(PATH, body))[0] - began) / MS)
        usage = wire.json("POST", PATH, {**body, "stream": False})["usage"]
    assert waits[0] >= 100
    assert 4 <= waits[1] < waits[0]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 96


def test_a_full_batch_makes_the_others_wait_in_line() -> None:
    with running(max_batch=2, itl="constant:5ms") as wire:
        answers = at_once(wire, 6, chat(max_tokens=10, stream=True))
        assert all(answer.endswith(b"0\r\n\r\n") for answer in answers)
        truth = wire.sim.truth()
        assert truth["max_running"] == 2
        assert truth["max_waiting"] == 4
        queue = truth["queue_ms"]
        assert isinstance(queue, dict)
        assert queue["n"] == 6
        assert isinstance(queue["max"], float)
        assert queue["max"] >= 80


def test_the_kv_budget_queues_and_what_can_never_fit_is_refused() -> None:
    with running(kv_tokens=30, itl="constant:5ms") as wire:
        at_once(wire, 3, chat(max_tokens=10))
        truth = wire.sim.truth()
        assert (truth["max_running"], truth["requests"], truth["used_tokens"]) == (2, 3, 0)
        status, _, data = wire.ask("POST", PATH, chat(max_tokens=28))
        assert status == 400
        assert b"31 tokens of KV cache" in data


def test_a_full_queue_answers_503() -> None:
    with running(max_batch=1, max_waiting=1, itl="constant:20ms") as wire:
        answers = at_once(wire, 3, chat(max_tokens=10))
    assert sorted(answer.split(b" ")[1] for answer in answers) == [b"200", b"200", b"503"]


def test_itl_grows_with_the_batch() -> None:
    with running(slowdown=1.0, itl="constant:4ms") as wire:
        alone = gaps_ms(wire.events(PATH, chat(max_tokens=10, stream=True)))
        wire.sim.reset()
        at_once(wire, 3, chat(max_tokens=40, stream=True))
        itl = wire.sim.truth()["itl_ms"]
    assert min(alone) < 6
    assert isinstance(itl, dict)
    assert isinstance(itl["p50"], float)
    assert itl["p50"] > 10


def test_several_tokens_to_a_chunk_keep_the_token_rate() -> None:
    with running(tokens_per_chunk="constant:4", itl="constant:2ms") as wire:
        events = wire.events(PATH, chat(max_tokens=18, stream=True))
        texts = [one["choices"][0]["delta"].get("content", "") for one in events]
        assert [len(text.split()) for text in texts if text] == [4, 4, 4, 4, 2]
        assert 27 <= sum(gaps_ms(events)) < 100
        truth = wire.sim.truth()
        wire.sim.flags(tokens_per_chunk="constant:1")
        one_by_one = wire.events(PATH, chat(max_tokens=18, stream=True))
    assert "".join(texts) == "".join(one["choices"][0]["delta"].get("content", "") for one in one_by_one)
    assert truth["itl_ms"] == {
        "n": 0,
        **dict.fromkeys(("mean", "min", "p50", "p90", "p95", "p99", "p999", "max")),
    }
    icl = truth["icl_ms"]
    assert isinstance(icl, dict)
    assert icl["n"] == 4


def test_output_lengths_are_drawn_and_the_same_seed_draws_the_same() -> None:
    def lengths(wire: Wire, **more: object) -> list[int]:
        answers = [wire.json("POST", PATH, chat(max_tokens=100, **more)) for _ in range(12)]
        for one in answers:
            reason = "length" if one["usage"]["completion_tokens"] == 100 else "stop"
            assert one["choices"][0]["finish_reason"] == reason
        return [one["usage"]["completion_tokens"] for one in answers]

    with running(output_tokens="uniform:5..20", itl="constant:0s", ttft="constant:0s", seed=5) as wire:
        first = lengths(wire)
        assert len(set(first)) > 3
        assert all(5 <= length <= 20 for length in first)
        wire.sim.reset()
        assert lengths(wire) == first
        assert set(lengths(wire, ignore_eos=True)) == {100}
        wire.sim.flags(output_tokens="max", eos=0.2)
        assert all(length < 100 for length in lengths(wire))


def test_jitter_is_drawn_from_the_distribution() -> None:
    with running(itl="uniform:2ms..6ms") as wire:
        gaps = gaps_ms(wire.events(PATH, chat(max_tokens=60, stream=True)))
    assert min(gaps) > 0.8
    assert sorted(gaps)[15] < 4.5 < max(gaps)


def test_early_headers_come_before_the_first_token() -> None:
    with running(early_headers=True, ttft="constant:800ms") as wire, wire.socket() as sock:
        began = time.monotonic()
        sock.sendall(post(PATH, chat(max_tokens=2, stream=True)))
        head = sock.recv(65_536)
        assert time.monotonic() - began < 0.8
        assert head.endswith(b"\r\n\r\n")
        assert read_all(sock).count(b'"delta":{"content":" ') == 2


def test_a_client_that_leaves_frees_its_place() -> None:
    with running(max_batch=1) as wire:
        with wire.socket() as sock:
            sock.sendall(post(PATH, chat(max_tokens=100_000, stream=True)))
            assert sock.recv(10)
        assert wire.json("POST", PATH, chat(max_tokens=1))["choices"]
        assert wire.sim.truth()["aborted"] == 1


def test_a_client_that_does_not_read_is_waited_for_and_loses_nothing() -> None:
    body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 1500}}
    with running(ttft="constant:0s", itl="constant:0s") as wire, wire.socket() as sock:
        sock.sendall(post("/generate", body))
        while not wire.sim.truth()["blocked_chunks"]:
            pass
        answer = read_all(sock)
    assert answer.count(b"data: {") == 1500
    assert answer.endswith(b"0\r\n\r\n")


def test_flags_change_while_it_runs_and_bad_ones_change_nothing(wire: Wire) -> None:
    before = wire.sim.info()["flags"]
    with pytest.raises(UpstreamError, match="itl"):
        wire.sim.flags(itl="fast")
    with pytest.raises(UpstreamError, match="port"):
        wire.sim.flags(port=5)
    status, _, data = wire.ask("POST", "/sim/flags", {"ilt": "constant:1ms"})
    assert status == 400
    assert b"ilt" in data
    assert wire.sim.info()["flags"] == before
    assert wire.sim.flags(embedding_size=3)["embedding_size"] == 3
    assert len(wire.json("POST", "/v1/embeddings", {"input": "a"})["data"][0]["embedding"]) == 3


def test_the_simulator_says_what_it_is(wire: Wire) -> None:
    info = wire.sim.info()
    assert info["model"] == "sim"
    assert info["version"]
    assert isinstance(info["revision"], str)
    assert info["revision"].startswith("words-")
    with running(commit="abc", revision="r1") as other:
        told = other.sim.info()
    assert (told["commit"], told["revision"]) == ("abc", "r1")


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with running(context_tokens=10) as wire:
        status, _, data = wire.ask("POST", PATH, chat(max_tokens=8))
        assert status == 400
        assert b"maximum context length is 10" in data
        assert wire.json("POST", PATH, chat())["usage"]["completion_tokens"] == 7


def test_input_tokens_can_be_counted_by_a_real_tokenizer(tmp_path: Any) -> None:  # noqa: ANN401 - pytest's path
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[U]": 0}, unk_token="[U]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    with running(tokenizer=str(path)) as wire:
        usage = wire.json("POST", PATH, chat(max_tokens=1))["usage"]
    assert usage["prompt_tokens"] == len("say some words")

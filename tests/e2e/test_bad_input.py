"""Each kind of bad input is one line with its cause and its mend, and an exit code by kind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from tests.e2e.running import Ended, one_line, scripted, weir

BAD_INPUT, ENDPOINT, REFUSED, RESOURCE = 2, 4, 5, 6

ERROR_BODY = {"error": {"message": "the server says no", "type": "denied", "code": None}}


def bench(url: str, out: Path, *arguments: str, backend: str = "openai", model: str = "m") -> Ended:
    load = ("--requests", "4", "--arrival", "concurrency=2", "--max-tokens", "8", "--timeout", "10s")
    return weir("bench", url, "--model", model, "--backend", backend, "--out", str(out), *load, *arguments)


def test_an_unreachable_host_is_named(tmp_path: Path) -> None:
    with socket.socket() as unheard:
        # Bound but not listening: the port is ours, and connections to it are refused.
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        ended = bench(f"http://127.0.0.1:{port}", tmp_path)
    assert ended.code == ENDPOINT
    assert str(port) in one_line(ended)


def test_a_host_name_that_does_not_exist_is_named(tmp_path: Path) -> None:
    ended = bench("http://no-such-host.invalid:8000", tmp_path)
    assert ended.code == ENDPOINT
    assert "no-such-host.invalid" in one_line(ended)


@pytest.mark.parametrize(
    ("status", "code"), [(401, REFUSED), (403, REFUSED), (404, REFUSED), (429, ENDPOINT), (500, ENDPOINT)]
)
def test_a_refusal_carries_status_and_the_servers_words(tmp_path: Path, status: int, code: int) -> None:
    with scripted(status, ERROR_BODY) as server:
        ended = bench(server.url, tmp_path)
    line = one_line(ended)
    assert ended.code == code, line
    assert str(status) in line
    assert "the server says no" in line


def test_a_wrong_model_is_named(tmp_path: Path, strict_simulator: str) -> None:
    ended = bench(strict_simulator, tmp_path, "--model", "another-model")
    assert ended.code == REFUSED
    assert "another-model" in one_line(ended)


def test_a_reply_that_is_no_stream_is_told_apart(tmp_path: Path) -> None:
    page = b"<html><body>Welcome to the proxy</body></html>"
    with scripted(200, page, headers={"content-type": "text/html"}) as server:
        ended = bench(server.url, tmp_path)
    assert ended.code == ENDPOINT
    assert "HTML" in one_line(ended)


def test_a_stream_that_ends_early_is_told(tmp_path: Path) -> None:
    chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
    body = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    with scripted(200, body, headers={"content-type": "text/event-stream"}) as server:
        ended = bench(server.url, tmp_path)
    assert ended.code == ENDPOINT
    assert "end" in one_line(ended)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--duration", "5"), "5s"),
        (("--arrival", "poisson=20"), "/s"),
        (("--arrival", "poison=20/s"), "poisson"),
        (("--slo", "ttft=200"), "200ms"),
        (("--scenario", "D(128)"), "D("),
        (("--concurency", "3"), "--concurency"),
        (("--label", "colour"), "colour"),
        (("--backend", "olama"), "olama"),
    ],
)
def test_what_cannot_be_understood_says_what_to_write(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    ended = weir(
        "bench",
        "http://127.0.0.1:9",
        "--model",
        "m",
        "--backend",
        "openai",
        "--out",
        str(tmp_path),
        *arguments,
    )
    assert ended.code == BAD_INPUT
    assert told in one_line(ended)


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path, simulator: str) -> None:
    ended = bench(simulator, tmp_path / "runs", "--corpus", "no-such-corpus", model="sim")
    assert ended.code == BAD_INPUT
    assert "no-such-corpus" in one_line(ended)


def test_a_corpus_line_that_does_not_parse_is_pointed_at(tmp_path: Path, simulator: str) -> None:
    corpus = tmp_path / "prompts.jsonl"
    corpus.write_text('{"prompt": "one"}\n{"prompt": "two"\n')
    ended = bench(simulator, tmp_path / "runs", "--corpus", str(corpus), model="sim")
    assert ended.code == BAD_INPUT
    assert "prompts.jsonl" in one_line(ended)
    assert "2" in one_line(ended).partition("prompts.jsonl")[2]


def test_too_few_descriptors_says_how_many_are_needed(tmp_path: Path, simulator: str) -> None:
    limited = ("sh", "-c", 'ulimit -n 128 && exec "$@"', "sh")
    load = ("--requests", "500", "--arrival", "concurrency=500", "--max-tokens", "4")
    ended = weir(
        "bench",
        simulator,
        "--model",
        "sim",
        "--backend",
        "sim",
        "--out",
        str(tmp_path),
        *load,
        prefix=limited,
    )
    assert ended.code == RESOURCE
    assert any(int(word) >= 500 for word in one_line(ended).replace(",", "").split() if word.isdigit())


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    trial = ("unshare", "--user", "--map-root-user", "--mount", "true")
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="no mount namespace may be made here")
def test_a_full_disk_ends_the_run_and_keeps_what_was_measured(tmp_path: Path, simulator: str) -> None:
    small, kept = tmp_path / "small", tmp_path / "kept"
    small.mkdir()
    # The small disk lives in a namespace of its own, which needs no privilege and leaves with the command.
    script = (
        f'mount -t tmpfs -o size=40m none {small} && "$@"; code=$?; '
        f"mkdir {kept} && cp -r {small}/. {kept}/; exit $code"
    )
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    load = ("--duration", "60s", "--arrival", "concurrency=64", "--max-tokens", "32")
    ended = weir(
        "bench",
        simulator,
        "--model",
        "sim",
        "--backend",
        "sim",
        "--out",
        f"{small}/run",
        *load,
        prefix=inside,
    )
    line = one_line(ended)
    assert ended.code == RESOURCE, line
    assert str(small) in line or "disk" in line or "space" in line
    assert (kept / "run" / "run.json").exists(), ended.err
    run = json.loads((kept / "run" / "run.json").read_text())
    assert run["status"] == "failed"
    assert run["summary"]["counts"]["completed"] > 100
    assert (kept / "run" / "requests.parquet").exists()

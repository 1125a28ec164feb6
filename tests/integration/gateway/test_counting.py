"""Servers that say no usage, before a gateway that has the model's tokenizer."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import User, waiting
from tests.factories.silent import ARGUMENTS, HANG, HANGS_AFTER, REASONING, TOOL, pieces_of, silent_server
from tokenizers import Tokenizer

from tokenweir.gateway.metering.counting import PER_ANSWER, PER_MESSAGE

MODEL = Path(__file__).parents[3] / "examples" / "demo-model" / "good"
TEXT = "How many rivers flow past 38 weirs — and how deep is the Ångerman?"
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def tokens(tokenizer: Tokenizer, *texts: str) -> int:
    return sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)


@contextmanager
def counting() -> Generator[GatewayProcess]:
    with silent_server() as url:
        known = endpoint("known", url, kind="openai", model="known", more=[f'tokenizer = "{MODEL}"'])
        unknown = endpoint("unknown", url, kind="openai", model="unknown")
        with gateway(known + unknown) as door:
            yield door


@pytest.fixture(scope="module")
def door() -> Iterator[GatewayProcess]:
    with counting() as process:
        yield process


def key_of(door: GatewayProcess, name: str) -> str:
    assert door.weir("users", "add", name).returncode == 0
    made = door.weir("quotas", "set", str(LIMIT), "tokens", "--per", "day", "--user", name)
    assert made.returncode == 0, made.stderr
    return door.weir("keys", "create", name).stdout.strip()


def rows(door: GatewayProcess, name: str, count: int) -> list[tuple[int, int, str, str]]:
    """Return input, output, source and ending of a user's requests, once there are so many."""

    def look() -> list[tuple[int, int, str, str]] | None:
        told = door.weir("usage", "--by", "request", "--user", name).stdout.splitlines()[1:]
        cells = [line.split(",") for line in told]
        return [(int(c[6]), int(c[7]), c[11], c[12]) for c in cells] if len(cells) >= count else None

    return waiting(look, f"{count} rows")


def chat(text: str, *, model: str = "known") -> dict[str, Any]:
    return {"model": model, "messages": turns(text)}


def turns(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_direct_answers_are_counted_by_the_tokenizer(door: GatewayProcess, tokenizer: Tokenizer) -> None:
    client = door.client(key_of(door, "direct"))
    # Long enough to be counted beside the event loop, and, streamed, to be kept as text alone.
    long = " ".join([TEXT] * 60)
    prompts = [TEXT, long]
    for text in prompts:
        client.chat.completions.create(**chat(text))
        for _ in client.chat.completions.create(**chat(text), stream=True):
            pass
    client.completions.create(model="known", prompt=TEXT)
    client.embeddings.create(model="known", input=[TEXT, "weir"])
    around = PER_MESSAGE + PER_ANSWER
    said = [tokens(tokenizer, text, REASONING, TOOL, ARGUMENTS) for text in prompts]
    assert rows(door, "direct", 6) == [
        *(
            (tokens(tokenizer, text) + around, output, "tokenizer", "completed")
            for text, output in zip(prompts, said, strict=True)
            for _ in range(2)
        ),
        (tokens(tokenizer, TEXT), tokens(tokenizer, TEXT), "tokenizer", "completed"),
        (tokens(tokenizer, TEXT, "weir"), 0, "tokenizer", "completed"),
    ]


def test_what_a_tokenizer_cannot_count_is_estimated(door: GatewayProcess) -> None:
    client = door.client(key_of(door, "estimated"))
    client.chat.completions.create(**chat(TEXT, model="unknown"))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts: Any = [{"role": "user", "content": [picture]}, {"role": "user", "content": TEXT}]
    client.chat.completions.create(model="known", messages=parts)
    assert [row[2:] for row in rows(door, "estimated", 2)] == [("estimated", "completed")] * 2
    shown = door.weir("usage", "--user", "estimated").stdout
    assert "estimated" in shown


def test_queued_answers_and_responses_are_counted_by_the_tokenizer(
    door: GatewayProcess, tokenizer: Tokenizer
) -> None:
    key = key_of(door, "queued")
    user = User(door.url, key)
    for mode in ("single", "stream"):
        request = user.submit(mode=mode, **chat(TEXT))
        user.until(request, "completed")
    door.client(key).responses.create(model="known", input=TEXT)
    prompt = tokens(tokenizer, TEXT) + PER_MESSAGE + PER_ANSWER
    output = tokens(tokenizer, TEXT, REASONING, TOOL, ARGUMENTS)
    assert rows(door, "queued", 3) == [(prompt, output, "tokenizer", "completed")] * 3


def test_a_stream_that_is_left_is_charged_what_came(tokenizer: Tokenizer) -> None:
    text = f"{HANG} {TEXT}"
    with counting() as door:
        parts = urlsplit(door.url)
        body = json.dumps({**chat(text), "stream": True}).encode()
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as raw:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.key}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body)
            received = b""
            while received.count(b"data:") < HANGS_AFTER:
                received += raw.recv(65536)
        # The gateway stops once every request is settled.
        assert door.stop() == 0
        prompt = tokens(tokenizer, text) + PER_MESSAGE + PER_ANSWER
        came = tokens(tokenizer, "".join(pieces_of(text)[:HANGS_AFTER]))
        told = door.weir("usage", "--by", "request").stdout.splitlines()[1:]
        (row,) = [line.split(",") for line in told]
        assert (int(row[6]), int(row[7]), row[11], row[12]) == (prompt, came, "tokenizer", "cancelled")
        assert door.weir("quotas", "verify").returncode == 0


@pytest.mark.parametrize("times", [1, 100])
def test_what_is_set_aside_for_a_prompt_is_counted(
    door: GatewayProcess, tokenizer: Tokenizer, times: int
) -> None:
    client = door.client(key_of(door, f"aside{times}"))
    text = " ".join([TEXT] * times)
    answer = client.chat.completions.with_raw_response.create(
        model="known", messages=turns(text), max_tokens=5
    )
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert LIMIT - left == tokens(tokenizer, text) + PER_MESSAGE + PER_ANSWER + 5


def test_a_tokenizer_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    for path, said in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path / "bad.json", "is no tokenizer.json"),
    ):
        settings = endpoint("one", "http://127.0.0.1:1", more=[f'tokenizer = "{path}"'])
        ended = GatewayProcess(tmp_path, settings).weir("up", "--port", "0")
        assert ended.returncode == 2
        assert ended.stderr.startswith("weir: the tokenizer of the endpoint 'one',")
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_answers_stay_what_the_server_said(door: GatewayProcess) -> None:
    client = door.client(key_of(door, "same"))
    assert client.chat.completions.create(model="known", messages=turns(TEXT)).usage is None
    chunks = list(client.chat.completions.create(model="known", messages=turns(TEXT), stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT

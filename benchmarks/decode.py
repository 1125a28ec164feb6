"""CPU time per stream event: decoded to events, to timing columns, and by plain ``json.loads``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from benchmarks.harness import Figure, Result, measured
from tokenweir.backends.openai import OpenAIBackend
from tokenweir.backends.sglang import sglang
from tokenweir.core.requests import GenerateRequest, Message

EVENTS = 64
REPEAT = 300
BATCHES = 7

FIGURES = (
    Figure("chat, events", "µs/event", (), 2.2, "lower"),
    Figure("chat, timing", "µs/event", (), 1.5, "lower"),
    Figure("chat, json.loads", "µs/event", ()),
    Figure("chat, json.loads / events", "×", ()),
    Figure("chat, an event per feed", "µs/event", ()),
    Figure("generate, events", "µs/event", (), 2.2, "lower"),
    Figure("generate, timing", "µs/event", (), 1.5, "lower"),
    Figure("generate, json.loads", "µs/event", ()),
    Figure("generate, json.loads / events", "×", ()),
)


def measure(rounds: int) -> Result:
    """Measure streams of 64 events as SGLang writes them, fed whole; the best of seven batches each round."""
    how = (
        f"{EVENTS} events of a stream as SGLang 0.5.23 writes them, whole body in one feed, process CPU time"
    )
    return measured("decode", how, rounds, lambda _: _round(), FIGURES)


def _round() -> Mapping[str, float]:
    chat = GenerateRequest(kind="chat", model="m", messages=(Message(role="user", content="hi"),))
    text = GenerateRequest(kind="completion", model="m", prompt="a")
    openai, engine = OpenAIBackend(), sglang()
    chats, texts = _chat(), _generate()
    single = [part + b"\n\n" for part in chats.split(b"\n\n")[:-1]]

    def one_by_one() -> None:
        decoder = openai.decoder(chat)
        for part in single:
            decoder.feed(part)

    found = {
        "chat, events": _cost(lambda: openai.decoder(chat).feed(chats)),
        "chat, timing": _cost(lambda: openai.decoder(chat).timing(chats)),
        "chat, json.loads": _cost(lambda: _plain(chats)),
        "chat, an event per feed": _cost(one_by_one),
        "generate, events": _cost(lambda: engine.decoder(text).feed(texts)),
        "generate, timing": _cost(lambda: engine.decoder(text).timing(texts)),
        "generate, json.loads": _cost(lambda: _plain(texts)),
    }
    for name in ("chat", "generate"):
        found[f"{name}, json.loads / events"] = found[f"{name}, json.loads"] / found[f"{name}, events"]
    return found


def _cost(work: Callable[[], object]) -> float:
    """Return microseconds of CPU per event: the best batch, which is the least disturbed one."""
    best = float("inf")
    for _ in range(BATCHES):
        start = time.process_time_ns()
        for _ in range(REPEAT):
            work()
        best = min(best, (time.process_time_ns() - start) / REPEAT)
    return best / EVENTS / 1000


def _plain(body: bytes) -> list[object]:
    return [json.loads(part[6:]) for part in body.split(b"\n\n") if part.startswith(b"data: {")]


def _events(payloads: list[dict[str, object]]) -> bytes:
    lines = [json.dumps(payload, separators=(",", ":")).encode() for payload in payloads]
    return b"".join(b"data: " + line + b"\n\n" for line in [*lines, b"[DONE]"])


def _chat() -> bytes:
    """Return a chat stream: 62 words, the finish and the usage."""
    head = {
        "id": "a" * 32,
        "object": "chat.completion.chunk",
        "created": 1795255519,
        "model": "models/qhd128",
    }

    def chunk(content: str | None, finish: str | None = None) -> dict[str, object]:
        delta = {"reasoning_content": None, "content": content}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "matched_stop": None}
        return {**head, "choices": [choice]}

    usage = {"prompt_tokens": 11, "total_tokens": 73, "completion_tokens": 62, "prompt_tokens_details": None}
    words = [chunk(f" word{number}") for number in range(EVENTS - 2)]
    return _events([*words, chunk(None, "length"), {**head, "choices": [], "usage": usage}])


def _generate() -> bytes:
    """Return a cumulative ``/generate`` stream: every event repeats what came before."""
    events: list[dict[str, object]] = []
    for number in range(1, EVENTS + 1):
        ended = number == EVENTS
        meta = {
            "id": "a" * 32,
            "finish_reason": {"type": "length", "length": EVENTS} if ended else None,
            "prompt_tokens": 11,
            "weight_version": "default",
            "num_retractions": 0,
            "queue_time": 0.00029155500033084536,
            "reasoning_tokens": 0,
            "completion_tokens": number,
            "cached_tokens": 0,
            "cached_tokens_details": None,
            "dp_rank": None,
            **({"e2e_latency": 0.126, "first_token_latency": 0.119} if ended else {}),
        }
        text = "".join(f" word{word}" for word in range(number))
        events.append({"text": text, "output_ids": list(range(1000, 1000 + number)), "meta_info": meta})
    return _events(events)


def main() -> None:
    """Print one round, for a quick look."""
    for what, value in _round().items():
        print(f"{what:32} {value:8.2f}")


if __name__ == "__main__":
    main()

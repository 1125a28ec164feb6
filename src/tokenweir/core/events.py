"""What happens to a request, in order: ``accepted, queued, started, token, usage, degraded`` and one end.

As JSON, a field that has its default is left out.
Every event carries ``seq``, counted from 0 within its request by its one writer. State is a fold over the
events (:func:`state`); nothing stores a status that they do not imply.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from tokenweir.core.requests import Json, ToolCall


class Accepted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="accepted"):
    """The request was taken on; ``request_id`` names it from here."""

    seq: int
    request_id: str = ""


class Queued(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="queued"):
    """The request waits for a worker."""

    seq: int


class Started(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="started"):
    """The engine began to answer: its first byte of an answer, which need not hold a token.

    ``upstream_id`` is the engine's name for the request, ``model`` the model it says it serves. ``endpoint`` is the
    gateway's name of who answers; callers are not told. A later one begins the answer anew.
    """

    seq: int
    attempt: int = 1
    upstream_id: str = ""
    model: str = ""
    endpoint: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A drawn token with its natural-log probability and the most probable alternatives, best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="token"):
    """A non-empty increment of text, reasoning or tool call.

    ``count`` is the number of output tokens in the increment where the engine says so, else ``None``.
    ``sent_ns`` is the sender's CLOCK_MONOTONIC at sending, known from the simulator only.
    ``index`` is the choice the increment belongs to (``n`` > 1). ``logprobs`` are those of its tokens, where asked.
    """

    seq: int
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    count: int | None = None
    index: int = 0
    sent_ns: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="usage"):
    """Tokens counted for the request so far; a later one replaces an earlier one.

    ``source`` says who counted: the server, our tokenizer, or an estimate from the text's length.
    ``recompiles`` is how often the engine compiled for this request (SGLang-JAX's ``cache_miss_count``).
    ``drafted_tokens`` were proposed by a draft model, and ``accepted_tokens`` of them taken.
    ``timings_ns`` are the engine's own durations under their GLOSSARY names (``queue_time``, ``ttft``, ``e2el``).
    """

    seq: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    recompiles: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    source: Literal["server", "tokenizer", "estimate"] = "server"
    timings_ns: dict[str, int] = {}


class Degraded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="degraded"):
    """The service gave less than was asked, and says what."""

    seq: int
    what: str = ""


class Completed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="completed"):
    """The answer is whole. ``embeddings`` holds the vectors of an embedding request, ``data`` what else came."""

    seq: int
    finish_reason: str = ""
    embeddings: tuple[tuple[float, ...], ...] = ()
    data: dict[str, Json] = {}


class Failed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="failed"):
    """The request failed. ``kind`` is an error's ``code``; ``status`` the HTTP status where there was one."""

    seq: int
    kind: str
    message: str = ""
    status: int | None = None
    retryable: bool = False
    retry_after_ns: int | None = None


class Cancelled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="cancelled"):
    """The request was cancelled and the engine obeyed."""

    seq: int


Event: TypeAlias = Accepted | Queued | Started | Token | Usage | Degraded | Completed | Failed | Cancelled

State = Literal["new", "accepted", "queued", "running", "completed", "failed", "cancelled"]


def state(events: Iterable[Event]) -> State:
    """Return the state that the events imply; the first ending event wins."""
    now: State = "new"
    for event in events:
        match event:
            case Accepted():
                now = "accepted"
            case Queued():
                now = "queued"
            case Started() | Token():
                now = "running"
            case Completed():
                return "completed"
            case Failed():
                return "failed"
            case Cancelled():
                return "cancelled"
            case Usage() | Degraded():
                pass
    return now


def text(events: Iterable[Event]) -> str:
    """Return the answer's text: the increments of choice 0 joined, reasoning and tool calls left out."""
    return "".join(event.text for event in events if isinstance(event, Token) and event.index == 0)

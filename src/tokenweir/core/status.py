"""What a caller is told of a queued request: the JSON of the native routes, as both sides read and write it."""

from __future__ import annotations

from typing import Final, cast

import msgspec

from tokenweir.core.events import Event, State
from tokenweir.core.requests import Json

ENDED: Final[frozenset[State]] = frozenset({"completed", "failed", "cancelled"})
"""The states that nothing follows."""


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """A request was taken on: it ends, whatever crashes. ``degraded`` says what of it was given up under load."""

    request_id: str
    status_url: str
    events_url: str
    degraded: tuple[str, ...] = ()


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens used, in OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class RequestError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request failed; ``status`` is the HTTP status where there was one."""

    message: str
    code: str
    status: int | None = None
    retryable: bool = False


class RequestStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a request stands. Instants are Unix seconds. ``result`` is OpenAI's answer, once there is one.

    ``last_seq`` is the seq of its last event, -1 where there is none. ``ended_at`` is set once it is settled, which
    may be a moment after ``status`` says that it has ended. Lists leave ``result`` out.
    """

    id: str
    request_id: str
    status: State
    mode: str
    model: str
    priority: int
    attempt: int
    created_at: int
    cancel_requested: bool
    last_seq: int
    status_url: str
    events_url: str
    object: str = "request"
    deadline_at: int | None = None
    ended_at: int | None = None
    token_usage: TokenUsage | None = None
    result: dict[str, Json] | None = None
    error: RequestError | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.status in ENDED

    @property
    def text(self) -> str:
        """The text of the answer's first choice; "" where there is none."""
        choices = cast("list[dict[str, Json]]", (self.result or {}).get("choices") or [])
        if not choices:
            return ""
        message = cast("dict[str, Json] | None", choices[0].get("message"))
        found = message.get("content") if message is not None else choices[0].get("text")
        return found if isinstance(found, str) else ""


class RequestList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the caller's requests, newest first; ``next_cursor`` asks for the one after it."""

    data: tuple[RequestStatus, ...]
    has_more: bool
    next_cursor: str | None = None
    object: str = "list"


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """The events there are now above the one asked from; ``last_seq`` is where to ask on."""

    data: tuple[Event, ...]
    last_seq: int
    ended: bool
    object: str = "list"

"""The bodies and answers of routes whose handlers pass them on, or put them together: described, not decoded."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tokenweir.asgi.problems import ErrorBody
from tokenweir.core.events import Event
from tokenweir.core.requests import Json

Positive: TypeAlias = Annotated[int, Meta(ge=1)]


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error body, with ``mend``: what to do about it."""

    error: ErrorBody


class EndpointError(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint's own error, as it gave it."""

    message: str
    code: str | int | None = None
    type: str | None = None
    param: str | None = None
    mend: str | msgspec.UnsetType = msgspec.UNSET


class Relayed(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's error, or that of an endpoint as it is."""

    error: EndpointError


class ChatTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn of a conversation; further fields, as ``tool_calls``, pass as they are."""

    role: str
    content: str | list[dict[str, Json]] | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``include_usage`` adds a chunk with the usage to the stream."""

    include_usage: bool | None = None


class ChatBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's chat completion; fields that are not listed pass to the endpoint as they are."""

    model: str
    messages: Annotated[list[ChatTurn], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Positive | None = None


class CompletionBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's completion; fields that are not listed pass to the endpoint as they are."""

    model: str
    prompt: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    n: Positive | None = None


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's embedding; fields that are not listed pass to the endpoint as they are."""

    model: str
    input: str | list[str]


class SubmitBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a chat, completion or embedding request: one of ``messages``, ``prompt``, ``input``.

    Beside them stand the fields of a queued request.
    """

    model: str
    messages: Annotated[list[ChatTurn], Meta(min_length=1)] | msgspec.UnsetType = msgspec.UNSET
    prompt: str | msgspec.UnsetType = msgspec.UNSET
    input: str | list[str] | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Positive | None = None
    mode: Literal["single", "stream"] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] | None = None
    deadline: str | float | None = None
    webhook: str = ""
    retry_after_tokens: bool = False


class OpenAiAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of OpenAI's form, as the endpoint gave it."""

    object: str
    model: str


class ResponseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's response, as it is now."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    output: list[dict[str, Json]]
    error: dict[str, Json] | None
    incomplete_details: dict[str, Json] | None
    usage: dict[str, Json] | None


class DeletedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted."""

    id: str
    object: str
    deleted: bool


class FileForm(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename={"seconds": "expires_after[seconds]", "anchor": "expires_after[anchor]"},
):
    """The parts of a form that brings a file."""

    file: str
    purpose: Literal["batch", "user_data"]
    anchor: Literal["created_at"] | msgspec.UnsetType = msgspec.UNSET
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)] | msgspec.UnsetType = msgspec.UNSET


class FileAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a file beside its contents. Instants are Unix seconds."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output", "user_data"]
    expires_at: int | None = None


class FilePage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the caller's files; ``last_id`` as ``after`` asks for the one that follows."""

    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's batch: a file of requests, a line each, and the route that they are for."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch stands. Instants are Unix seconds."""

    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    created_at: int
    output_file_id: str | None
    error_file_id: str | None
    errors: dict[str, Json] | None
    request_counts: dict[str, int]


class BatchPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the caller's batches; ``last_id`` as ``after`` asks for the one that follows."""

    data: list[BatchAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class ItemPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of OpenAI's; ``last_id`` as ``after`` asks for the one that follows."""

    data: list[dict[str, Json]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A model that this key may ask."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The models that this key may ask."""

    data: list[ModelAnswer]
    object: Literal["list"] = "list"


class LetterAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter: a job that was given up, with the error of each attempt."""

    request_id: str
    attempt: int
    model: str
    mode: str
    ended: bool
    errors: list[str]


class LetterWithEvents(LetterAnswer, frozen=True, kw_only=True):
    """A dead letter with the request's events."""

    events: list[Event]


class LetterList(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters, oldest first."""

    data: list[LetterAnswer]
    object: Literal["list"] = "list"


class ReplayAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The request that does a dead job again."""

    request_id: str


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint stands."""

    name: str
    model: str
    up: bool
    in_flight: int


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How the gateway stands; ``brownout`` where it has a ladder."""

    status: Literal["ok", "draining"]
    endpoints: list[EndpointState]
    brownout: dict[str, Json] | msgspec.UnsetType = msgspec.UNSET


class ReadyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests should come here."""

    ready: bool

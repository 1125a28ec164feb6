"""OpenAI's HTTP interface, as OpenAI, vLLM, mlx_lm.server, llama.cpp and many others speak it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

from tokenweir.backends.failures import http_error
from tokenweir.backends.openai_stream import AnswerDecoder, ChunkDecoder
from tokenweir.core.errors import EndpointError, SpecError
from tokenweir.core.requests import GenerateRequest, Json, Kind, Message, Sampling
from tokenweir.ports.backend import HttpRequest, HttpResponse, Identity
from tokenweir.ports.timing import TimingDecoder

JSON_HEADERS: Final = (("content-type", "application/json"), ("accept", "application/json"))
STREAM_HEADERS: Final = (("content-type", "application/json"), ("accept", "text/event-stream"))

ROUTES: Final[Mapping[Kind, str]] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
}

SAMPLING: Final[Mapping[str, str]] = {
    "max_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}
"""Our name of a sampling setting and OpenAI's; ``min_tokens`` and ``top_k`` are vLLM's additions."""

NOT_TOLD: Final[Mapping[str, str]] = {
    "version": "the OpenAI interface does not tell it, and the server has no /version",
    "commit": "not told over HTTP; say it with --commit",
    "revision": "not told over HTTP; say it with --revision",
    "model": "the server lists no model",
}
"""Why a field of the identity is unknown."""


class ModelCard(msgspec.Struct):
    """An entry of ``/v1/models``: ``root`` and ``max_model_len`` are additions of vLLM, ``revision`` is ours."""

    id: str
    root: str | None = None
    max_model_len: int | None = None
    revision: str | None = None


class ModelList(msgspec.Struct):
    """The answer of ``/v1/models``."""

    data: list[ModelCard]


class OpenAIBackend:
    """A server of the OpenAI interface, known by nothing else."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """The name used in settings."""
        return "openai"

    def encode(self, request: GenerateRequest) -> HttpRequest:
        """Return the HTTP request. Raises SpecError for messages without content or a missing input."""
        return encode(request)

    def decoder(self, request: GenerateRequest) -> TimingDecoder:
        """Return a decoder for the 200 answer to ``request``; embeddings are never streamed."""
        return decoder(request)

    def error(self, response: HttpResponse) -> EndpointError:
        """Return the error that an answer other than 200 means."""
        return http_error(response)

    def health(self) -> HttpRequest:
        """Return GET /v1/models: the only side door that every such server has."""
        return HttpRequest(method="GET", path="/v1/models")

    def identity_probes(self) -> Sequence[HttpRequest]:
        """Return the requests whose answers identify the engine."""
        return tuple(HttpRequest(method="GET", path=path) for path in ("/v1/models", "/version"))

    def identity(self, answers: Sequence[HttpResponse]) -> Identity:
        """Read the model list and vLLM's version. Never guesses: of several models none is taken."""
        return read_identity(answers)

    def action(self, name: str, options: Mapping[str, Json]) -> HttpRequest | None:
        """Return nothing: the interface has no such doors."""
        del name, options
        return None


def read_identity(answers: Sequence[HttpResponse]) -> Identity:
    """Return what the answers to ``/v1/models`` and ``/version`` tell. Only our own runtime tells all of it."""
    told = fields(answers[1])
    version, commit = told.get("version"), told.get("commit")
    return card_identity(
        models(answers[0]),
        version=version if isinstance(version, str) else None,
        commit=commit if isinstance(commit, str) else None,
    )


def card_identity(cards: Sequence[ModelCard], *, version: str | None, commit: str | None = None) -> Identity:
    """Return what a model list tells of a server."""
    missing = dict(NOT_TOLD)
    card = cards[0] if len(cards) == 1 else None
    if version is not None:
        del missing["version"]
    if commit is not None:
        del missing["commit"]
    if card is not None:
        del missing["model"]
        if card.revision is not None:
            del missing["revision"]
    elif cards:
        missing["model"] = "the server lists several: " + ", ".join(card.id for card in cards)
    return Identity(
        version=version,
        commit=commit,
        revision=None if card is None else card.revision,
        model=None if card is None else card.id,
        model_path=None if card is None else card.root,
        max_model_tokens=None if card is None else card.max_model_len,
        missing=missing,
    )


def decoder(request: GenerateRequest) -> TimingDecoder:
    """Return a decoder for the 200 answer of an OpenAI route."""
    if request.stream and request.kind != "embedding":
        return ChunkDecoder(request)
    return AnswerDecoder(request)


def encode(request: GenerateRequest) -> HttpRequest:
    """Return the request for the OpenAI route of its kind, ``extra`` merged last."""
    body: dict[str, Json] = {"model": request.model}
    stream = request.stream and request.kind != "embedding"
    match request.kind:
        case "chat":
            if not request.messages:
                raise SpecError("a chat request has no messages", mend="give at least one message")
            body["messages"] = [message_body(message) for message in request.messages]
        case "completion":
            prompt = request.prompt
            body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        case "embedding":
            if not request.inputs:
                raise SpecError("an embedding request has no inputs", mend="give at least one text")
            body["input"] = list(request.inputs)
    if request.kind != "embedding":
        body["stream"] = stream
        if stream:
            body["stream_options"] = {"include_usage": True}
        body.update(sampling_body(request.sampling, request.kind))
        _structure(request, body)
    body.update(request.extra)
    return HttpRequest(
        method="POST",
        path=ROUTES[request.kind],
        headers=STREAM_HEADERS if stream else JSON_HEADERS,
        body=msgspec.json.encode(body),
    )


def sampling_body(sampling: Sampling, kind: Kind) -> dict[str, Json]:
    """Return OpenAI's fields for the settings that are set."""
    body: dict[str, Json] = {}
    for ours, theirs in SAMPLING.items():
        value = cast("Json", getattr(sampling, ours))
        if value is not None:
            body[theirs] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.n != 1:
        body["n"] = sampling.n
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    if sampling.logprobs is not None:
        if kind == "chat":
            body["logprobs"] = True
            body["top_logprobs"] = sampling.logprobs
        else:
            body["logprobs"] = sampling.logprobs
    return body


def message_body(message: Message) -> dict[str, Json]:
    """Return one turn as OpenAI writes it."""
    content = message.content
    body: dict[str, Json] = {"role": message.role}
    body["content"] = list(content) if isinstance(content, tuple) else content
    if message.name is not None:
        body["name"] = message.name
    if message.tool_calls:
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    return body


def _structure(request: GenerateRequest, body: dict[str, Json]) -> None:
    """Add tools and the response format."""
    if request.kind == "completion" and (request.tools or request.tool_choice is not None):
        raise SpecError("tools need the chat interface", mend="set kind to 'chat'")
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
            for tool in request.tools
        ]
    if request.tool_choice is not None:
        body["tool_choice"] = request.tool_choice
    if request.response_format is not None:
        body["response_format"] = request.response_format


def models(response: HttpResponse) -> tuple[ModelCard, ...]:
    """Return the models that a ``/v1/models`` answer lists; none for any other answer."""
    if response.status != 200:  # noqa: PLR2004
        return ()
    try:
        return tuple(msgspec.json.decode(response.body, type=ModelList).data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()


def fields(response: HttpResponse) -> dict[str, Json]:
    """Return the JSON object that a side door answered; empty for any other answer."""
    if response.status != 200:  # noqa: PLR2004
        return {}
    try:
        told = cast("Json", msgspec.json.decode(response.body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}

"""SGLang and SGLang-JAX: the native ``/generate`` beside the OpenAI routes, and their side doors.

The two engines are one protocol; what differs is in :data:`SGLANG` and :data:`SGLANG_JAX`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

from tokenweir.backends import openai
from tokenweir.backends.failures import http_error
from tokenweir.backends.sglang_stream import GenerateAnswerDecoder, GenerateDecoder
from tokenweir.core.errors import EndpointError, SpecError
from tokenweir.core.requests import GenerateRequest, Json
from tokenweir.ports.backend import HttpRequest, HttpResponse, Identity
from tokenweir.ports.timing import TimingDecoder

ROUTE: Final = "route"
"""Key of ``GenerateRequest.extra`` that picks a completion's route: ``native`` (the default) or ``openai``.

It is taken out before the rest of ``extra`` is merged into the body.
"""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How one engine of the family differs from the other.

    ``health`` is the path whose 200 means that a token was generated. ``sampling`` maps our sampling settings
    to those of ``/generate``; what is not in it cannot be asked. ``forgiven`` are statuses that an action may
    answer although it did what it should, or had nothing left to do.
    """

    kind: str
    health: str
    sampling: Mapping[str, str]
    flush_options: frozenset[str]
    forgiven: frozenset[tuple[str, int]]


_SAMPLING: Final = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}

SGLANG: Final = Dialect(
    kind="sglang",
    health="/health",
    sampling={**_SAMPLING, "seed": "sampling_seed"},
    flush_options=frozenset({"timeout"}),
    # A profile of num_steps stops by itself, and stopping it again is a server error.
    forgiven=frozenset({("stop_profile", 500)}),
)

SGLANG_JAX: Final = Dialect(
    kind="sglang_jax",
    # /health answers 200 whatever state the engine is in.
    health="/health_generate",
    sampling=_SAMPLING,
    flush_options=frozenset(),
    forgiven=frozenset({("stop_profile", 500)}),
)

PROBES: Final = ("/server_info", "/get_server_info", "/model_info", "/get_model_info", "/v1/models")
"""New and old paths of the same facts; SGLang-JAX has only the old ones."""

SECRET: Final = re.compile(r"(^|_)(key|password|secret|token|credentials?)$|api_key|auth")
"""Names of server arguments that must not travel into a record."""

NO_FLAGS: Final = frozenset(
    {"version", "commit", "internal_states", "status", "host", "port", "nccl_port", "dist_init_addr"}
)
"""Members of the server's information that are no engine flags, or differ between like servers."""

ACTIONS: Final[Mapping[str, str]] = {
    "flush": "/flush_cache",
    "start_profile": "/start_profile",
    "stop_profile": "/stop_profile",
    "abort": "/abort_request",
}


class SglangBackend:
    """One engine of the SGLang family."""

    __slots__ = ("_dialect",)

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    @property
    def kind(self) -> str:
        """The name used in settings."""
        return self._dialect.kind

    def encode(self, request: GenerateRequest) -> HttpRequest:
        """Return the HTTP request: ``/generate`` for a completion, the OpenAI route for anything else.

        ``/generate`` tells exact token counts and the engine's own timings. Raises SpecError for what the
        engine cannot be asked there, and for an unknown route.
        """
        native = _native(request)
        if ROUTE in request.extra:
            extra = {name: value for name, value in request.extra.items() if name != ROUTE}
            request = msgspec.structs.replace(request, extra=extra)
        return self._generate(request) if native else openai.encode(request)

    def decoder(self, request: GenerateRequest) -> TimingDecoder:
        """Return a decoder for the 200 answer to ``request``."""
        if not _native(request):
            return openai.decoder(request)
        return GenerateDecoder(request) if request.stream else GenerateAnswerDecoder()

    def error(self, response: HttpResponse) -> EndpointError:
        """Return the error that an answer other than 200 means."""
        return http_error(response)

    def health(self) -> HttpRequest:
        """Return the request that makes the engine generate a token."""
        return HttpRequest(method="GET", path=self._dialect.health)

    def identity_probes(self) -> Sequence[HttpRequest]:
        """Return the requests whose answers identify the engine, new and old paths."""
        return tuple(HttpRequest(method="GET", path=path) for path in PROBES)

    def identity(self, answers: Sequence[HttpResponse]) -> Identity:
        """Read server and model information. Never guesses."""
        new_server, old_server, new_model, old_model = (openai.fields(answer) for answer in answers[:4])
        return _identity(new_server or old_server, new_model or old_model, openai.models(answers[4]))

    def action(self, name: str, options: Mapping[str, Json]) -> HttpRequest | None:
        """Return the request for ``flush``, ``start_profile``, ``stop_profile`` or ``abort``.

        ``abort`` wants ``rid`` or ``abort_all``; profile options are passed on as they are.
        """
        path = ACTIONS.get(name)
        if path is None:
            return None
        if name == "flush":
            query = "&".join(
                f"{key}={options[key]}" for key in sorted(self._dialect.flush_options & options.keys())
            )
            return HttpRequest(method="POST", path=f"{path}?{query}" if query else path)
        if name == "stop_profile":
            return HttpRequest(method="POST", path=path)
        return HttpRequest(
            method="POST", path=path, headers=openai.JSON_HEADERS, body=msgspec.json.encode(dict(options))
        )

    def forgives(self, action: str, status: int) -> bool:
        """Return whether ``status`` is no failure of ``action``."""
        return (action, status) in self._dialect.forgiven

    def _generate(self, request: GenerateRequest) -> HttpRequest:
        body: dict[str, Json] = {}
        if isinstance(request.prompt, str):
            body["text"] = request.prompt
        else:
            body["input_ids"] = list(request.prompt)
        body["stream"] = request.stream
        body["sampling_params"] = self._sampling(request)
        if request.sampling.logprobs is not None:
            body["return_logprob"] = True
            body["top_logprobs_num"] = request.sampling.logprobs
        body.update(request.extra)
        return HttpRequest(
            method="POST",
            path="/generate",
            headers=openai.STREAM_HEADERS if request.stream else openai.JSON_HEADERS,
            body=msgspec.json.encode(body),
        )

    def _sampling(self, request: GenerateRequest) -> dict[str, Json]:
        sampling = request.sampling
        params: dict[str, Json] = {}
        for ours in (*_SAMPLING, "seed"):
            value = cast("Json", getattr(sampling, ours))
            if value is None:
                continue
            theirs = self._dialect.sampling.get(ours)
            if theirs is None:
                raise SpecError(
                    f"{self.kind} takes no {ours} in /generate, got {value!r}",
                    mend=f"leave {ours} out, or use the OpenAI route with extra {ROUTE} = 'openai'",
                )
            params[theirs] = value
        if sampling.stop:
            params["stop"] = list(sampling.stop)
        if sampling.n != 1:
            params["n"] = sampling.n
        if sampling.ignore_eos:
            params["ignore_eos"] = True
        if request.tools or request.tool_choice is not None:
            raise SpecError("tools need the chat interface", mend="set kind to 'chat'")
        if request.response_format is not None:
            params["json_schema"] = _schema(request.response_format)
        return params


def sglang() -> SglangBackend:
    """Return the backend of SGLang."""
    return SglangBackend(SGLANG)


def sglang_jax() -> SglangBackend:
    """Return the backend of SGLang-JAX."""
    return SglangBackend(SGLANG_JAX)


def _native(request: GenerateRequest) -> bool:
    route = request.extra.get(ROUTE)
    if route not in {None, "native", "openai"}:
        raise SpecError(f"unknown route {route!r}", mend="write 'native' or 'openai'")
    if route == "native" and request.kind != "completion":
        raise SpecError(
            f"/generate takes completions, got kind {request.kind!r}", mend="set kind to 'completion'"
        )
    return request.kind == "completion" and route != "openai"


def _schema(response_format: Mapping[str, Json]) -> str:
    """Return the JSON Schema of an OpenAI response format as ``/generate`` wants it."""
    if response_format.get("type") == "json_object":
        return '{"type":"object"}'
    wrapped = response_format.get("json_schema")
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    if not isinstance(schema, dict):
        raise SpecError(
            f"/generate takes a JSON schema as response format, got {dict(response_format)!r}",
            mend="use type json_object, or json_schema with a schema",
        )
    return msgspec.json.encode(schema).decode()


def _identity(
    server: Mapping[str, Json], model: Mapping[str, Json], cards: Sequence[openai.ModelCard]
) -> Identity:
    facts = {**model, **server}
    card = cards[0] if len(cards) == 1 else None
    path = _text(facts, "model_path")
    name = _text(model, "served_model_name") or _text(server, "served_model_name")
    name = name or (card.id if card is not None else path)
    version, revision = _text(server, "version"), _text(server, "revision")
    # Neither engine tells its commit, but a build or a sidecar that knows it may.
    commit = _text(server, "commit")
    length = server.get("context_length")
    tokens = card.max_model_len if card is not None else None
    missing: dict[str, str] = {}
    if commit is None:
        missing["commit"] = openai.NOT_TOLD["commit"]
    silent = "" if server else "neither /server_info nor /get_server_info answered"
    if version is None:
        missing["version"] = silent or "the server information holds no version"
    if name is None:
        missing["model"] = "neither model information nor /v1/models answered"
    if revision is None:
        reason = f"the server was started without one (model {path!r}); say it with --revision"
        missing["revision"] = silent or reason
    return Identity(
        version=version,
        commit=commit,
        model=name,
        revision=revision,
        flags={flag: value for flag, value in server.items() if _is_flag(flag, value)},
        model_path=path,
        max_model_tokens=tokens if tokens is not None or not isinstance(length, int) else length,
        missing=missing,
    )


def _text(facts: Mapping[str, Json], name: str) -> str | None:
    value = facts.get(name)
    return value if isinstance(value, str) and value else None


def _is_flag(name: str, value: Json) -> bool:
    return (
        value is not None
        and name not in NO_FLAGS
        and SECRET.search(name) is None
        and not isinstance(value, dict)
    )

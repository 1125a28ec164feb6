"""Which path is answered by what."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import monotonic_ns, process_time, time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

import tokenweir
from tokenweir.core.errors import ConfigError
from tokenweir.core.requests import Json
from tokenweir.sim import http
from tokenweir.sim.asks import read_chat, read_completion, read_embedding, read_generate
from tokenweir.sim.faults import Fault, parse_fault
from tokenweir.sim.metrics import exposition
from tokenweir.sim.options import public
from tokenweir.sim.tokens import TEXT
from tokenweir.telemetry import build

if TYPE_CHECKING:
    from tokenweir.sim.asks import Ask
    from tokenweir.sim.connection import Connection
    from tokenweir.sim.http import Request
    from tokenweir.sim.server import Server

_T = TypeVar("_T")
_Handler = Callable[["Server", "Connection", "Request"], None]

FAULT_HEADER: Final = b"x-sim-fault"
_OPEN_PREFIXES: Final = ("/health", "/metrics", "/sim/", "/ready")
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_STARTED_AT: Final = int(time())
_COMMIT: Final = build.commit()
_PAGE: Final = b"<!doctype html><title>Gateway</title><p>This is no event stream.</p>\n"
_FAULT_MESSAGES: Final = {
    429: "Rate limit reached (simulated).",
    503: "The engine is overloaded (simulated).",
}


def serve(server: Server, conn: Connection, request: Request) -> None:
    """Answer a request, or hand it to the engine."""
    handler = ROUTES.get((request.method, request.path))
    if handler is None:
        known = any(path == request.path for _, path in ROUTES)
        status, what = (405, "method") if known else (404, "path")
        _refuse(server, conn, status, f"The simulator knows no such {what}: {request.method} {request.path}")
        return
    key = server.options.api_key
    if key is not None and not request.path.startswith(_OPEN_PREFIXES):
        given = request.headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + key.encode()):
            _refuse(server, conn, 401, "Incorrect API key provided.")
            return
    try:
        handler(server, conn, request)
    except http.HttpError as error:
        _refuse(server, conn, error.status, error.message, native=request.path == "/generate")
    except ConfigError as error:
        _refuse(server, conn, 400, str(error))


def refusal(status: int, message: str, *, native: bool = False) -> bytes:
    """Return an error body: OpenAI's, or SGLang's own."""
    if native:
        return msgspec.json.encode({"error": {"message": message}})
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004 - HTTP's own border
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": status}})


def _refuse(server: Server, conn: Connection, status: int, message: str, *, native: bool = False) -> None:
    server.engine.truth.refused += 1
    conn.reply(status, refusal(status, message, native=native))


# Text and vectors.


def _text(reader: Callable[[bytes, Callable[[str], int]], Ask]) -> _Handler:
    def handle(server: Server, conn: Connection, request: Request) -> None:
        now = monotonic_ns()
        engine = server.engine
        fault = engine.next_fault(_ordered_fault(request))
        if fault is not None and _at_once(conn, fault):
            return
        ask = reader(request.body, engine.count_tokens)
        _check_model(server, ask.model)
        if ask.stream and not request.modern:
            raise http.HttpError(505, "A stream needs HTTP/1.1.")
        engine.answer_text(conn, ask, fault, now)

    return handle


def _embeddings(server: Server, conn: Connection, request: Request) -> None:
    now = monotonic_ns()
    fault = server.engine.next_fault(_ordered_fault(request))
    if fault is not None and _at_once(conn, fault):
        return
    asked = read_embedding(request.body, server.engine.count_tokens)
    _check_model(server, asked.model)
    server.engine.answer_embedding(conn, asked, fault, now)


def _ordered_fault(request: Request) -> Fault | None:
    text = request.headers.get(FAULT_HEADER)
    return parse_fault(text.decode("latin-1")) if text is not None else None


def _at_once(conn: Connection, fault: Fault) -> bool:
    """Let a fault happen that needs no engine; return whether that was it."""
    if fault.kind == "close":
        conn.drop()
    elif fault.kind == "not-sse":
        conn.reply(200, _PAGE, "text/html; charset=utf-8")
    elif fault.kind == "status":
        extra = (("retry-after", fault.retry_after),) if fault.retry_after is not None else ()
        message = _FAULT_MESSAGES.get(fault.status, "Simulated failure.")
        conn.reply(fault.status, refusal(fault.status, message), extra=extra)
    else:
        return False
    return True


def _check_model(server: Server, model: str) -> None:
    options = server.options
    if options.strict_model and model and model != options.model:
        raise http.HttpError(404, f"The model `{model}` does not exist.")


# What the engine says of itself.


def _models(server: Server, conn: Connection, request: Request) -> None:
    del request
    options = server.options
    model = {
        "id": options.model,
        "object": "model",
        "created": _STARTED_AT,
        "owned_by": "tokenweir",
        "root": options.model,
        "parent": None,
        "max_model_len": options.context_tokens,
    }
    _json(conn, {"object": "list", "data": [model]})


def _model_info(server: Server, conn: Connection, request: Request) -> None:
    del request
    options = server.options
    _json(
        conn,
        {
            "model_path": options.model,
            "served_model_name": options.model,
            "tokenizer_path": options.tokenizer or options.model,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": "default",
            "model_type": "sim",
            "revision": options.revision or _words_revision(options.script),
        },
    )


def _server_info(server: Server, conn: Connection, request: Request) -> None:
    del request
    options = server.options
    _json(
        conn,
        {
            "model_path": options.model,
            "served_model_name": options.model,
            "context_length": options.context_tokens,
            "max_running_requests": options.max_batch or None,
            "max_total_num_tokens": options.kv_tokens or None,
            "random_seed": options.seed,
            "version": tokenweir.__version__,
            **_identity(server),
        },
    )


def _identity(server: Server) -> dict[str, object]:
    options = server.options
    return {
        "version": tokenweir.__version__,
        "commit": options.commit or _COMMIT,
        "model": options.model,
        "revision": options.revision or _words_revision(options.script),
        "max_model_tokens": options.context_tokens,
        "flags": public(options),
    }


def _words_revision(script: str | None) -> str:
    """Return what stands for a hash of the weights: one of all the words and of the script."""
    digest = sha256(TEXT)
    if script is not None:
        digest.update(Path(script).read_bytes())
    return f"words-{digest.hexdigest()[:16]}"


def _info(server: Server, conn: Connection, request: Request) -> None:
    del request
    _json(conn, _identity(server))


def _truth(server: Server, conn: Connection, request: Request) -> None:
    del request
    engine = server.engine
    _json(
        conn,
        {
            **engine.truth.summary(),
            "running": engine.batch.running,
            "waiting": len(engine.batch.waiting),
            "used_tokens": engine.batch.used_tokens,
            "cpu_s": process_time(),
        },
    )


def _metrics(server: Server, conn: Connection, request: Request) -> None:
    del request
    conn.reply(200, exposition(server.engine), "text/plain; version=0.0.4; charset=utf-8")


# Side doors.


def _healthy(server: Server, conn: Connection, request: Request) -> None:
    del server, request
    conn.reply(200, b"", http.TEXT)


def _flush(server: Server, conn: Connection, request: Request) -> None:
    del request
    engine = server.engine
    if engine.batch.running or engine.batch.waiting:
        conn.reply(400, b"The cache is not flushed: requests are running or waiting.\n", http.TEXT)
        return
    conn.reply(200, b"Cache flushed.\nFlushed items: %d\n" % engine.prefixes.clear(), http.TEXT)


def _start_profile(server: Server, conn: Connection, request: Request) -> None:
    del server, request
    conn.reply(200, b"Start profiling.\n", http.TEXT)


def _stop_profile(server: Server, conn: Connection, request: Request) -> None:
    del server, request
    conn.reply(200, b"Stop profiling. This will take some time.\n", http.TEXT)


class _Abort(msgspec.Struct):
    rid: str | None = None
    abort_all: bool = False


def _abort(server: Server, conn: Connection, request: Request) -> None:
    asked = _decode(request.body or b"{}", _Abort)
    if asked.rid is not None or asked.abort_all:
        server.engine.abort(None if asked.abort_all else asked.rid)
    conn.reply(200, b"", http.TEXT)


def _reset(server: Server, conn: Connection, request: Request) -> None:
    del request
    server.engine.reset()
    _json(conn, {"reset": True})


def _flags(server: Server, conn: Connection, request: Request) -> None:
    server.change(_decode(request.body, dict[str, Json]))
    _json(conn, public(server.options))


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise http.HttpError(400, f"the body cannot be read: {error}") from None


def _json(conn: Connection, value: object) -> None:
    conn.reply(200, msgspec.json.encode(value))


_chat = _text(read_chat)
_completions = _text(read_completion)
_generate = _text(read_generate)

ROUTES: Final[dict[tuple[str, str], _Handler]] = {
    ("POST", "/v1/chat/completions"): _chat,
    ("POST", "/v1/completions"): _completions,
    ("POST", "/v1/embeddings"): _embeddings,
    ("GET", "/v1/models"): _models,
    ("POST", "/generate"): _generate,
    ("GET", "/get_model_info"): _model_info,
    ("GET", "/model_info"): _model_info,
    ("GET", "/get_server_info"): _server_info,
    ("GET", "/server_info"): _server_info,
    ("GET", "/health"): _healthy,
    ("GET", "/health_generate"): _healthy,
    ("GET", "/ready"): _healthy,
    ("GET", "/flush_cache"): _flush,
    ("POST", "/flush_cache"): _flush,
    ("GET", "/start_profile"): _start_profile,
    ("POST", "/start_profile"): _start_profile,
    ("GET", "/stop_profile"): _stop_profile,
    ("POST", "/stop_profile"): _stop_profile,
    ("POST", "/abort_request"): _abort,
    ("GET", "/metrics"): _metrics,
    ("GET", "/sim/info"): _info,
    ("GET", "/sim/truth"): _truth,
    ("POST", "/sim/reset"): _reset,
    ("POST", "/sim/flags"): _flags,
}
"""Every route of the simulator; docs/simulator.md lists them."""

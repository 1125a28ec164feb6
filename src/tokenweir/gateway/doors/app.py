"""The ASGI application of the gateway: finds the handler, and turns whatever is raised into OpenAI's error."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from tokenweir.asgi.call import Call, DisconnectedError, Receive, Scope, Send
from tokenweir.asgi.problems import logged, problem
from tokenweir.core.errors import WeirError
from tokenweir.gateway.direct.relay import LimitReachedError
from tokenweir.gateway.doors import sockets
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.routes import find
from tokenweir.telemetry import genai
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway")
_LEVEL: Final = logging.getLogger("tokenweir.gateway")
_GONE: Final = 499
_NS_PER_S: Final = 1_000_000_000


class App:
    """The gateway's interface over one door."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        door = self._door
        if scope["type"] == "websocket":
            await sockets.serve(door, scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = RequestId.new(door.clock)
        call = Call(scope, receive, send, request.text)
        call.number = request.value
        if door.tracer is None:
            await self._answer(call)
            return
        with door.tracer.server(call.method, call.header(b"traceparent"), call.header(b"tracestate")) as span:
            route, error = await self._answer(call)
            span.call(f"{call.method} {route}")
            span.set(genai.METHOD, call.method)
            span.set(genai.ROUTE, route)
            span.set(genai.STATUS, call.status)
            span.set(genai.REQUEST_ID, call.id)
            if error is not None:
                span.failed(error.code if isinstance(error, WeirError) else type(error).__name__)

    async def _answer(self, call: Call) -> tuple[str, Exception | None]:
        """Answer a request; returns its route, and the error that it ended in."""
        door = self._door
        started_ns = door.clock.monotonic_ns()
        route = "unknown"
        error: Exception | None = None
        try:
            found = find(call.method, call.path)
            route, call.part = found.path, found.part
            door.need(route)
            await found.handler(door, call)
            if not call.begun:
                call.status = _GONE
        except DisconnectedError:
            call.status = _GONE
        except WeirError as raised:
            error = raised
            told = problem(raised)
            if isinstance(raised, LimitReachedError):
                told = msgspec.structs.replace(told, more=raised.rates)
            await call.refuse(told)
        except Exception as raised:  # noqa: BLE001 - the request's boundary: the caller gets a body, the log the trace
            error = raised
            await call.refuse(problem(WeirError("internal error", mend="see the server's log")))
        took_ns = door.clock.monotonic_ns() - started_ns
        door.metrics.measures.request(route, call.status, took_ns / _NS_PER_S)
        if error is not None:
            door.metrics.measures.refused[error.code if isinstance(error, WeirError) else "internal"] += 1
        self._log(call, route, took_ns, error)
        return route, error

    def _log(self, call: Call, route: str, took_ns: int, error: BaseException | None) -> None:
        """Write one event for a request that failed; others at debug level."""
        level = error.log_level if isinstance(error, WeirError) else logging.DEBUG
        # The standard library's logger is asked, because one of structlog is put together anew for each question.
        if error is None and not _LEVEL.isEnabledFor(level):
            return
        fields: dict[str, object] = {
            genai.METHOD: call.method,
            genai.ROUTE: route,
            genai.STATUS: call.status,
            "request_id": call.id,
            "duration_ms": round(took_ns / 1e6, 3),
        }
        if isinstance(error, WeirError):
            # What a message quotes of a body may be a prompt.
            _LOG.log(
                level, "request refused", **fields, **logged(error, quotes=self._door.limits.log_prompts)
            )
        elif error is not None:
            _LOG.error("request failed", exc_info=error, **fields)
        else:
            _LOG.log(level, "request", **fields)

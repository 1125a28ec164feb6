"""The ASGI application: finds the handler, asks for the key, and turns whatever is raised into an answer."""

from __future__ import annotations

import hmac
import logging
from typing import Final

from tokenweir.asgi.call import Call, DisconnectedError, Event, Receive, Scope, Send
from tokenweir.asgi.problems import logged, problem
from tokenweir.core.errors import UnauthorizedError, WeirError
from tokenweir.core.ids import new_id
from tokenweir.runtime.http.door import Door
from tokenweir.runtime.http.probes import gauges
from tokenweir.runtime.http.routes import find
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.runtime.http")
_NS_PER_MS: Final = 1_000_000
_BEARER: Final = b"bearer "


class App:
    """The runtime's HTTP interface over one engine facade."""

    def __init__(self, door: Door) -> None:
        self.door = door
        metrics = door.metrics
        metrics.more = lambda: gauges(door.serving.health(), door.build, metrics.prefix_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await _other(scope, receive, send)
            return
        door = self.door
        call = Call(scope, receive, send, new_id("req"))
        started_ns = door.clock.monotonic_ns()
        route = "unknown"
        error: BaseException | None = None
        try:
            route, found = find(call.method, call.path)
            if not found.open:
                self._check_key(call)
            await found.handler(door, call)
        except DisconnectedError:
            call.status = 499
        except WeirError as raised:
            error = raised
            if not call.model:
                door.metrics.untold(route)
            await call.refuse(problem(raised))
        except Exception as raised:  # noqa: BLE001 - the request's boundary: the client gets a body, the log the trace
            error = raised
            await call.refuse(problem(WeirError("internal error", mend="see the server's log")))
        self._log(call, route, door.clock.monotonic_ns() - started_ns, error)

    def _check_key(self, call: Call) -> None:
        """Ask for the key, where one is set. The comparison takes the same time whatever is sent."""
        key = self.door.key
        if key is None:
            return
        sent = call.header(b"authorization") or b""
        token = sent[len(_BEARER) :] if sent[: len(_BEARER)].lower() == _BEARER else b""
        if not hmac.compare_digest(token, key.encode()):
            what = "the key is wrong" if token else "a key is needed"
            raise UnauthorizedError(what, mend="send it as 'authorization: Bearer KEY'")

    def _log(self, call: Call, route: str, took_ns: int, error: BaseException | None) -> None:
        """Write one event for the request; probes only at debug level."""
        level = logging.DEBUG if route in {"/health", "/ready", "/metrics", "/version"} else logging.INFO
        fields: dict[str, object] = {
            "http.request.method": call.method,
            "http.route": route,
            "http.response.status_code": call.status,
            "request_id": call.id,
            "duration_ms": round(took_ns / _NS_PER_MS, 3),
            **(call.meter.facts() if call.meter is not None else {}),
        }
        if isinstance(error, WeirError):
            level = max(level, error.log_level)
            fields |= logged(error, quotes=self.door.log_prompts)
        elif error is not None:
            _LOG.error("request failed", exc_info=error, **fields)
            return
        _LOG.log(level, "request", **fields)


async def _other(scope: Scope, receive: Receive, send: Send) -> None:
    """Go along with the server's start and end; close a WebSocket, for which there is no route."""
    if scope["type"] == "lifespan":
        while True:
            event: Event = await receive()
            await send({"type": f"{event['type']}.complete"})
            if event["type"] == "lifespan.shutdown":
                return
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})

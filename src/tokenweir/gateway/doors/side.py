"""The door of a process that answers no requests: its probes and its metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from tokenweir.asgi.call import Call, DisconnectedError, Receive, Scope, Send
from tokenweir.asgi.problems import MethodError, UnknownPathError, problem
from tokenweir.core.errors import WeirError
from tokenweir.gateway.doors.metrics import CONTENT_TYPE
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.side")
_PATHS: Final = ("/health", "/ready", "/metrics")


class SideApp:
    """Answers ``/health``, ``/ready`` and ``/metrics``. ``ready`` says whether work is taken."""

    def __init__(self, render: Callable[[], Awaitable[bytes]], ready: Callable[[], bool]) -> None:
        self._render = render
        self._ready = ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        call = Call(scope, receive, send, "")
        try:
            await self._answer(call)
        except DisconnectedError:
            return
        except WeirError as error:
            await call.refuse(problem(error))
        except Exception as error:  # noqa: BLE001 - the request's boundary: the caller gets a body, the log the trace
            _LOG.error("request failed", exc_info=error)
            await call.refuse(problem(WeirError("internal error", mend="see the log")))

    async def _answer(self, call: Call) -> None:
        if call.path not in _PATHS:
            raise UnknownPathError(f"there is no {call.path!r}", mend=f"the paths are {', '.join(_PATHS)}")
        if call.method not in {"GET", "HEAD"}:
            raise MethodError(f"{call.path!r} does not answer {call.method}", allowed="GET")
        if call.path == "/metrics":
            await call.answer(200, await self._render(), kind=CONTENT_TYPE)
        elif call.path == "/health":
            await call.answer_json({"status": "ok"})
        else:
            is_ready = self._ready()
            await call.answer_json({"ready": is_ready}, status=200 if is_ready else 503)

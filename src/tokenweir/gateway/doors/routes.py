"""Paths and their handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from tokenweir.asgi.call import Call
from tokenweir.asgi.problems import MethodError, UnknownPathError
from tokenweir.gateway.doors import handlers
from tokenweir.gateway.doors.door import Door

Handler: TypeAlias = Callable[[Door, Call], Awaitable[None]]


class Route(NamedTuple):
    """What answers a path."""

    method: str
    handler: Handler


ROUTES: Final[Mapping[str, Route]] = {
    "/v1/chat/completions": Route("POST", handlers.direct),
    "/v1/completions": Route("POST", handlers.direct),
    "/v1/embeddings": Route("POST", handlers.direct),
    "/v1/models": Route("GET", handlers.models),
    "/v1/models/{id}": Route("GET", handlers.model),
    "/health": Route("GET", handlers.health),
    "/ready": Route("GET", handlers.ready),
    "/metrics": Route("GET", handlers.metrics),
}

_MODEL: Final = "/v1/models/"


def find(method: str, path: str) -> tuple[str, Route]:
    """Return the route of a request and its path in the table.

    Raises:
        UnknownPathError: there is none.
        MethodError: it takes another method.
    """
    name = path
    if path not in ROUTES and path.startswith(_MODEL) and len(path) > len(_MODEL):
        name = _MODEL + "{id}"
    route = ROUTES.get(name)
    if route is None:
        raise UnknownPathError(f"there is no {path!r}", mend=f"the paths are {', '.join(ROUTES)}")
    if method != route.method and (method, route.method) != ("HEAD", "GET"):
        raise MethodError(f"{path!r} does not answer {method}", allowed=route.method)
    return name, route

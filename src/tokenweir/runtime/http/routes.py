"""Paths and their handlers."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from tokenweir.asgi.call import Call
from tokenweir.asgi.problems import MethodError, UnknownPathError
from tokenweir.runtime.http import generation, models, probes, vectors
from tokenweir.runtime.http.door import Door

Handler: TypeAlias = Callable[[Door, Call], Awaitable[None]]


class Route(NamedTuple):
    """What answers a path. ``open`` ones need no key."""

    method: str
    handler: Handler
    open: bool = False


ROUTES: Final[Mapping[str, Route]] = {
    "/v1/chat/completions": Route("POST", generation.chat),
    "/v1/completions": Route("POST", generation.completion),
    "/v1/embeddings": Route("POST", vectors.embedding),
    "/v1/models": Route("GET", models.listing),
    "/v1/models/load": Route("POST", models.load),
    "/v1/models/unload": Route("POST", models.unload),
    "/v1/models/{id}": Route("GET", models.one),
    "/v1/tokenize": Route("POST", vectors.tokenize),
    "/v1/detokenize": Route("POST", vectors.detokenize),
    "/tokenize": Route("POST", vectors.tokenize),
    "/detokenize": Route("POST", vectors.detokenize),
    "/health": Route("GET", probes.health, open=True),
    "/ready": Route("GET", probes.ready, open=True),
    "/version": Route("GET", probes.version, open=True),
    "/metrics": Route("GET", probes.metrics, open=True),
}

_MODEL: Final = "/v1/models/"


def find(method: str, path: str) -> tuple[str, Route]:
    """Return the route of a request and its path in the table. HEAD asks for what GET would answer.

    Raises:
        UnknownPathError: there is none.
        MethodError: it takes another method.
    """
    name = path
    if path not in ROUTES and path.startswith(_MODEL) and len(path) > len(_MODEL):
        name = _MODEL + "{id}"
    route = ROUTES.get(name)
    if route is None:
        raise UnknownPathError(f"there is no {path!r}", mend=_nearest(path))
    if method != route.method and (method, route.method) != ("HEAD", "GET"):
        raise MethodError(f"{path!r} does not answer {method}", allowed=route.method)
    return name, route


def _nearest(path: str) -> str:
    """Return what to ask instead: the path that is most like this one, else what most ask for."""
    near = difflib.get_close_matches(path, ROUTES, n=1, cutoff=0.75)
    return (
        f"did you mean {near[0]!r}?"
        if near
        else "POST /v1/chat/completions asks, GET /v1/models lists models"
    )

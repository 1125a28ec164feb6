"""Paths and their handlers."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from tokenweir.asgi.call import Call
from tokenweir.asgi.problems import MethodError, UnknownPathError
from tokenweir.gateway.doors import (
    admin,
    admin_use,
    batches,
    dead_letters,
    events_stream,
    files,
    handlers,
    native,
    responses,
)
from tokenweir.gateway.doors.door import Door
from tokenweir.gateway.doors.openapi import document

Handler: TypeAlias = Callable[[Door, Call], Awaitable[None]]
Methods: TypeAlias = Mapping[str, Handler]


async def openapi(door: Door, call: Call) -> None:
    """Give the OpenAPI document of what this door has."""
    await call.answer(200, document(documented(door.only)))


ROUTES: Final[Mapping[str, Methods]] = {
    "/v1/chat/completions": {"POST": handlers.direct},
    "/v1/completions": {"POST": handlers.direct},
    "/v1/embeddings": {"POST": handlers.direct},
    "/v1/responses": {"POST": responses.create},
    "/v1/responses/{id}": {"GET": responses.show, "DELETE": responses.delete},
    "/v1/responses/{id}/cancel": {"POST": responses.cancel},
    "/v1/responses/{id}/input_items": {"GET": responses.input_items},
    "/v1/files": {"POST": files.create, "GET": files.listed},
    "/v1/files/{id}": {"GET": files.show, "DELETE": files.delete},
    "/v1/files/{id}/content": {"GET": files.content},
    "/v1/batches": {"POST": batches.create, "GET": batches.listed},
    "/v1/batches/{id}": {"GET": batches.show},
    "/v1/batches/{id}/cancel": {"POST": batches.cancel},
    "/v1/models": {"GET": handlers.models},
    "/v1/models/{id}": {"GET": handlers.model},
    "/v1/requests": {"POST": native.submit, "GET": native.history},
    "/v1/requests/{id}": {"GET": native.status, "DELETE": native.cancel},
    "/v1/requests/{id}/events": {"GET": events_stream.events},
    "/v1/queue": {"GET": dead_letters.depth},
    "/v1/queue/dead": {"GET": dead_letters.listed},
    "/v1/queue/dead/{id}": {
        "GET": dead_letters.show,
        "POST": dead_letters.replay,
        "DELETE": dead_letters.drop,
    },
    "/v1/admin/users": {"GET": admin.users, "POST": admin.add_user},
    "/v1/admin/users/{id}": {"GET": admin.user, "PATCH": admin.change_user},
    "/v1/admin/teams": {"GET": admin.teams, "POST": admin.add_team},
    "/v1/admin/tiers": {"GET": admin.tiers},
    "/v1/admin/tiers/{id}": {"PUT": admin.set_tier},
    "/v1/admin/keys": {"GET": admin.keys, "POST": admin.create_key},
    "/v1/admin/keys/{id}": {"GET": admin.key, "DELETE": admin.revoke_key},
    "/v1/admin/keys/{id}/rotate": {"POST": admin.rotate_key},
    "/v1/admin/quotas": {
        "GET": admin_use.quotas,
        "PUT": admin_use.set_quota,
        "DELETE": admin_use.remove_quota,
    },
    "/v1/admin/quotas/verify": {"GET": admin_use.verify},
    "/v1/admin/quotas/rebuild": {"POST": admin_use.rebuild},
    "/v1/admin/usage": {"GET": admin_use.usage},
    # What existing integrations call.
    "/generate": {"POST": native.submit},
    "/status/{id}": {"GET": native.status},
    "/events/{id}": {"GET": events_stream.events},
    "/api/gateway": {"POST": native.submit},
    "/api/status/{id}": {"GET": native.status},
    "/health": {"GET": handlers.health},
    "/ready": {"GET": handlers.ready},
    "/metrics": {"GET": handlers.metrics},
    "/openapi.json": {"GET": openapi},
}
"""Handlers by path and method; each is described in ``descriptions.py``.

``{id}`` is one part of a path, or all of its rest where it is the last.
"""

_ID: Final = "{id}"


def documented(only: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Return the routes (``METHOD /path``) of all paths, or of these."""
    return tuple(
        f"{method} {path}"
        for path, methods in ROUTES.items()
        if not only or path in only
        for method in methods
    )


class Found(NamedTuple):
    """A path of the table, what answers it, and what stands for its ``{id}``."""

    path: str
    handler: Handler
    part: str = ""


def find(method: str, path: str) -> Found:
    """Return what answers a request.

    Raises:
        UnknownPathError: there is no such path.
        MethodError: it takes another method.
    """
    name, part = path, ""
    methods = ROUTES.get(path)
    if methods is None:
        name, part = _with_id(path)
        methods = ROUTES.get(name)
    if methods is None:
        raise UnknownPathError(f"there is no {path!r}", mend=_nearest(path))
    handler = methods.get("GET" if method == "HEAD" else method)
    if handler is None:
        raise MethodError(f"{path!r} does not answer {method}", allowed=", ".join(methods))
    return Found(name, handler, part)


def _nearest(path: str) -> str:
    """Return what to ask instead: the path that is most like this one, else where all of them are told."""
    near = difflib.get_close_matches(path, ROUTES, n=1, cutoff=0.75)
    return f"did you mean {near[0]!r}?" if near else "GET /openapi.json tells the paths there are"


def _with_id(path: str) -> tuple[str, str]:
    """Return the path of the table that ``path`` is an instance of, and its id; what is unknown comes back."""
    for before, after in _TEMPLATES:
        if path.startswith(before) and path.endswith(after) and len(path) > len(before) + len(after):
            part = path[len(before) : len(path) - len(after)]
            if not after or "/" not in part:
                return f"{before}{_ID}{after}", part
    return path, ""


# The longest come first, so that what is more exact is found before what takes any rest.
_TEMPLATES: Final = sorted(
    ((before, after) for before, found, after in (path.partition(_ID) for path in ROUTES) if found),
    key=lambda parts: (len(parts[0]), len(parts[1])),
    reverse=True,
)

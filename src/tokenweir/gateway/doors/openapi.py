"""The OpenAPI document, made of the routes and their descriptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from tokenweir import __version__
from tokenweir.core.requests import Json
from tokenweir.gateway.doors.describing import Content, Description, Frames, Told
from tokenweir.gateway.doors.descriptions import ALIASES, DESCRIPTIONS
from tokenweir.gateway.doors.schemas import ErrorAnswer, Relayed

_REFERENCE: Final = "#/components/schemas/{name}"
_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data"
_ID: Final = "{id}"
_LATER: Final = frozenset({429, 503})
_ASKING: Final = (404, 409, 429, 502, 504)
"""What asking a model can bring: there is none of that name, a conflict of idempotency keys, limits, endpoints."""
_SECURITY: Final[list[Json]] = [{"bearer": []}, {"api_key": []}]
_INFO: Final = (
    "One door before model servers. A key is sent as `authorization: Bearer weir_…`. Every error has OpenAI's body and"
    " says in `mend` what to do about it. The WebSocket at /v1/ws carries many requests over one connection."
)
_HEADERS: Final[dict[str, Json]] = {
    "x-request-id": {"description": "Names the request in logs.", "schema": {"type": "string"}}
}
_RATES: Final[dict[str, Json]] = {
    f"x-ratelimit-{what}-{unit}": {"description": meaning, "schema": {"type": kind}}
    for what, kind, meaning in (
        ("limit", "integer", "The limit of which the smallest part is left."),
        ("remaining", "integer", "What is left of it."),
        ("reset", "string", "When its window ends."),
    )
    for unit in ("requests", "tokens")
}
_DEGRADED: Final[dict[str, Json]] = {
    "x-weir-degraded": {"description": "What was given up under load.", "schema": {"type": "string"}}
}
_REPLAYED: Final[dict[str, Json]] = {
    "idempotent-replayed": {
        "description": "The idempotency key was known: this is the same request again.",
        "schema": {"const": "true"},
    }
}
_RETRY: Final[dict[str, Json]] = {
    "retry-after": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}


@cache
def document(routes: tuple[str, ...]) -> bytes:
    """Return the document of these routes (``METHOD /path``) as JSON."""
    return msgspec.json.encode(described(routes))


def described(routes: Iterable[str]) -> dict[str, Json]:
    """Return the document of these routes; a test holds that each has its description."""
    named = {route: ALIASES.get(route, route) for route in routes}
    rows = {route: DESCRIPTIONS[name] for route, name in named.items() if name in DESCRIPTIONS}
    types = list(_types(rows.values()))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    references = dict(zip(types, schemas, strict=True))
    paths: dict[str, Json] = {}
    for route, row in rows.items():
        method, _, path = route.partition(" ")
        methods = paths.setdefault(path, {})
        if isinstance(methods, dict):
            methods[method.lower()] = _operation(route, row, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tokenweir", "version": __version__, "description": _INFO},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _types(rows: Iterable[Description]) -> Iterator[Any]:
    """Yield each type that a route takes or answers with, once."""
    found: dict[Any, None] = {ErrorAnswer: None, Relayed: None}
    for row in rows:
        told = [each for answer in row.answers.values() for each in answer if not isinstance(each, Content)]
        found.update(dict.fromkeys(each.of if isinstance(each, Frames) else each for each in told))
        if row.body is not None:
            found[row.body] = None
    yield from found


def _operation(route: str, row: Description, references: Mapping[Any, Any]) -> dict[str, Json]:
    method, _, path = route.partition(" ")
    words = [part for part in path.replace(".", "/").split("/") if part and part != _ID]
    operation: dict[str, Json] = {
        "operationId": "_".join([method.lower(), *words, *(["one"] if path.endswith(_ID) else [])]),
        "tags": [words[1] if words[0] == "v1" and len(words) > 1 else words[0]],
        "summary": row.summary,
        "parameters": list(_parameters(path, row)),
        "responses": _responses(path, row, references),
        "security": [] if row.scope is None else _SECURITY,
    }
    if row.scope is not None:
        operation["description"] = f"Needs a key with the scope `{row.scope}`."
    if route in ALIASES:
        operation["deprecated"] = True
        operation["description"] = f"As `{ALIASES[route]}`, for existing integrations."
    if row.body is not None:
        kind = _FORM if row.form else _JSON
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": references[row.body]}}}
    return operation


def _parameters(path: str, row: Description) -> Iterator[Json]:
    if _ID in path:
        yield {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for query in row.query:
        yield {
            "name": query.name,
            "in": "query",
            "required": query.needed,
            "description": query.meaning,
            "schema": dict(query.schema),
        }
    if row.idempotent:
        schema: Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
        meaning = "The same key and body give the same request, and its answer once more."
        yield {"name": "Idempotency-Key", "in": "header", "description": meaning, "schema": schema}
    if row.resumes:
        seq: Json = {"type": "integer", "minimum": -1}
        meaning = "The seq of the last event that was seen; not together with `after`."
        yield {"name": "Last-Event-ID", "in": "header", "description": meaning, "schema": seq}


def _responses(path: str, row: Description, references: Mapping[Any, Any]) -> dict[str, Json]:
    answers: dict[str, Json] = {
        str(status): _answer(_phrase(status), told, references, more=_told_beside(row))
        for status, told in row.answers.items()
    }
    for status in sorted({*row.refuses, *_implied(path, row)} - set(row.answers)):
        refusal = _answer(_phrase(status), (Relayed if row.relays else ErrorAnswer,), references)
        if status in _LATER:
            refusal["headers"] = {**_HEADERS, **_RETRY}
        answers[str(status)] = refusal
    if row.relays:
        answers["4XX"] = _answer("An endpoint's own refusal", (Relayed,), references)
    return answers


def _told_beside(row: Description) -> dict[str, Json]:
    """Return the headers that a good answer of a route may have."""
    return {
        **(_RATES if row.asks else {}),
        **(_DEGRADED if row.asks else {}),
        **(_REPLAYED if row.idempotent else {}),
    }


def _implied(path: str, row: Description) -> Iterator[int]:
    """Yield the statuses of refusals that follow from what a route is."""
    if row.scope is not None:
        yield from (401, 403, 503)
    if _ID in path:
        yield 404
    if row.query or row.resumes or row.idempotent:
        yield 400
    if row.body is not None:
        yield from (400, 408, 413)
    if row.asks:
        yield from _ASKING


def _answer(
    phrase: str,
    told: Iterable[Told],
    references: Mapping[Any, Any],
    *,
    more: Mapping[str, Json] | None = None,
) -> dict[str, Json]:
    answer: dict[str, Json] = {"description": phrase, "headers": {**_HEADERS, **(more or {})}}
    content: dict[str, Json] = {}
    for each in told:
        match each:
            case Content.EVENTS:
                content[each.value] = {"schema": _frame({"type": "string"})}
            case Content():
                content[each.value] = {"schema": {"type": "string"}}
            case Frames():
                data: Json = {
                    "type": "string",
                    "contentMediaType": _JSON,
                    "contentSchema": references[each.of],
                }
                content[Content.EVENTS.value] = {"schema": _frame(data)}
            case _:
                content[_JSON] = {"schema": references[each]}
    if content:
        answer["content"] = content
    return answer


def _frame(data: Json) -> Json:
    """Return the schema of one server-sent event."""
    text: Json = {"type": "string"}
    return {
        "type": "object",
        "description": "One of the server-sent events.",
        "properties": {"id": text, "event": text, "data": data},
    }


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase

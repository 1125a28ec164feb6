"""What the OpenAPI document says of each route. Whoever adds a route to ``routes.ROUTES`` adds its row here.

A row tells what is particular to a route. What follows from it (401 and 403 of a scope, 404 of an ``{id}``, 400, 408
and 413 of a body, 503 of all) is added by :mod:`tokenweir.gateway.doors.openapi`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokenweir.core.events import Event
from tokenweir.core.status import EventList, RequestList, RequestStatus, Submitted
from tokenweir.gateway.doors import schemas
from tokenweir.gateway.doors.admin_descriptions import ADMIN
from tokenweir.gateway.doors.describing import Content, Description, Frames, Query
from tokenweir.gateway.responses.asked import Asked
from tokenweir.ports.queue import QueueDepth

_AFTER: Final = Query("after", {"type": "integer", "minimum": -1}, "The seq of the last event that was seen.")
_PAGE: Final = (
    Query("after", {"type": "string"}, "The last_id of the page before."),
    Query("order", {"enum": ["asc", "desc"], "default": "desc"}, "Newest first, or oldest first."),
)
_STREAM: Final = Query("stream", {"type": "boolean"}, "Whether events are streamed.")


def _limit(most: int, default: int) -> Query:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Query("limit", schema, "How many at most.")


DESCRIPTIONS: Final[Mapping[str, Description]] = {
    "POST /v1/chat/completions": Description(
        summary="Answer a conversation, through an endpoint of the model",
        body=schemas.ChatBody,
        answers={200: (schemas.OpenAiAnswer, Content.EVENTS)},
        asks=True,
        relays=True,
        idempotent=True,
    ),
    "POST /v1/completions": Description(
        summary="Continue a text, through an endpoint of the model",
        body=schemas.CompletionBody,
        answers={200: (schemas.OpenAiAnswer, Content.EVENTS)},
        asks=True,
        relays=True,
        idempotent=True,
    ),
    "POST /v1/embeddings": Description(
        summary="Turn text into vectors, through an endpoint of the model",
        body=schemas.EmbeddingBody,
        answers={200: (schemas.OpenAiAnswer,)},
        asks=True,
        relays=True,
        idempotent=True,
    ),
    "POST /v1/responses": Description(
        summary="Make a response: answered whole, streamed, or in the background",
        body=Asked,
        answers={200: (schemas.ResponseAnswer, Content.EVENTS)},
        asks=True,
        relays=True,
        idempotent=True,
    ),
    "GET /v1/responses/{id}": Description(
        summary="Tell a response as it is now, or stream its events",
        query=(
            _STREAM,
            Query("starting_after", {"type": "integer", "minimum": -1}, "With stream: events above this."),
            Query("include_obfuscation", {"type": "boolean", "const": False}, "Not supported."),
        ),
        answers={200: (schemas.ResponseAnswer, Content.EVENTS)},
    ),
    "DELETE /v1/responses/{id}": Description(
        summary="Erase what was asked and answered",
        answers={200: (schemas.DeletedAnswer,)},
        refuses=(400, 409),
    ),
    "POST /v1/responses/{id}/cancel": Description(
        summary="Have a background response stopped",
        answers={200: (schemas.ResponseAnswer,)},
        refuses=(400,),
    ),
    "GET /v1/responses/{id}/input_items": Description(
        summary="List the items of a response's own input",
        query=(*_PAGE, _limit(100, 20)),
        answers={200: (schemas.ItemPage,)},
    ),
    "POST /v1/files": Description(
        summary="Take a file in",
        body=schemas.FileForm,
        form=True,
        answers={200: (schemas.FileAnswer,)},
        refuses=(409, 415),
        idempotent=True,
    ),
    "GET /v1/files": Description(
        summary="List the caller's files",
        query=(
            Query("purpose", {"enum": ["batch", "batch_output", "user_data"]}, "Only those of this purpose."),
            *_PAGE,
            _limit(10_000, 10_000),
        ),
        answers={200: (schemas.FilePage,)},
    ),
    "GET /v1/files/{id}": Description(summary="Describe a file", answers={200: (schemas.FileAnswer,)}),
    "DELETE /v1/files/{id}": Description(summary="Delete a file", answers={200: (schemas.DeletedAnswer,)}),
    "GET /v1/files/{id}/content": Description(
        summary="Give a file's contents", answers={200: (Content.BYTES,)}
    ),
    "POST /v1/batches": Description(
        summary="Have a file of requests answered",
        body=schemas.BatchBody,
        answers={200: (schemas.BatchAnswer,)},
        refuses=(404, 409, 429),
        idempotent=True,
    ),
    "GET /v1/batches": Description(
        summary="List the caller's batches, newest first",
        query=(_PAGE[0], _limit(100, 20)),
        answers={200: (schemas.BatchPage,)},
    ),
    "GET /v1/batches/{id}": Description(
        summary="Tell how a batch stands", answers={200: (schemas.BatchAnswer,)}
    ),
    "POST /v1/batches/{id}/cancel": Description(
        summary="Have a batch stopped; what has ended is kept",
        answers={200: (schemas.BatchAnswer,)},
        refuses=(400, 409),
    ),
    "GET /v1/models": Description(
        summary="List the models that this key may ask", answers={200: (schemas.ModelList,)}
    ),
    "GET /v1/models/{id}": Description(summary="Describe a model", answers={200: (schemas.ModelAnswer,)}),
    "POST /v1/requests": Description(
        summary="Have a request taken on: once this answers it is durable, and it will end",
        body=schemas.SubmitBody,
        answers={202: (Submitted,)},
        asks=True,
        idempotent=True,
    ),
    "GET /v1/requests": Description(
        summary="List the caller's own requests, newest first",
        query=(_limit(100, 20), Query("cursor", {"type": "string"}, "The next_cursor of the page before.")),
        answers={200: (RequestList,)},
    ),
    "GET /v1/requests/{id}": Description(
        summary="Tell how a request stands, and its result", answers={200: (RequestStatus,)}
    ),
    "DELETE /v1/requests/{id}": Description(
        summary="Have a request stopped; what had come is kept and charged", answers={202: (RequestStatus,)}
    ),
    "GET /v1/requests/{id}/events": Description(
        summary="Stream a request's events from any point on; to Accept: application/json, those there are now",
        query=(_AFTER,),
        answers={200: (Frames(Event), EventList), 204: ()},
        resumes=True,
    ),
    "GET /v1/queue": Description(
        summary="Tell how the queue stands", scope="admin", answers={200: (QueueDepth,)}
    ),
    "GET /v1/queue/dead": Description(
        summary="List dead letters, oldest first", scope="admin", answers={200: (schemas.LetterList,)}
    ),
    "GET /v1/queue/dead/{id}": Description(
        summary="Show a dead letter with its events",
        scope="admin",
        answers={200: (schemas.LetterWithEvents,)},
    ),
    "POST /v1/queue/dead/{id}": Description(
        summary="Have a dead job done again",
        scope="admin",
        answers={202: (schemas.ReplayAnswer,)},
        refuses=(409, 429),
    ),
    "DELETE /v1/queue/dead/{id}": Description(
        summary="Forget a dead letter", scope="admin", answers={204: ()}
    ),
    **ADMIN,
    "GET /health": Description(
        summary="Say that the process lives, and how its endpoints stand",
        scope=None,
        answers={200: (schemas.HealthAnswer,)},
    ),
    "GET /ready": Description(
        summary="Say whether requests should come here",
        scope=None,
        answers={200: (schemas.ReadyAnswer,), 503: (schemas.ReadyAnswer,)},
    ),
    "GET /metrics": Description(
        summary="Give the counters to Prometheus", scope=None, answers={200: (Content.METRICS,)}
    ),
    "GET /openapi.json": Description(
        summary="Give this document", scope=None, answers={200: (dict[str, Any],)}
    ),
}
"""A row for each method and path."""

ALIASES: Final[Mapping[str, str]] = {
    "POST /generate": "POST /v1/requests",
    "POST /api/gateway": "POST /v1/requests",
    "GET /status/{id}": "GET /v1/requests/{id}",
    "GET /api/status/{id}": "GET /v1/requests/{id}",
    "GET /events/{id}": "GET /v1/requests/{id}/events",
}
"""Routes that are others under another path."""

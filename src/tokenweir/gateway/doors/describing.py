"""The vocabulary of the OpenAPI document's rows: what may be told of a route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import msgspec

from tokenweir.ports.access import Permission


class Content(Enum):
    """Answers that are no JSON."""

    EVENTS = "text/event-stream"
    METRICS = "text/plain"
    CSV = "text/csv"
    BYTES = "application/octet-stream"


class Frames(msgspec.Struct, frozen=True):
    """An answer of server-sent events whose data is JSON of a type."""

    of: Any


Told: TypeAlias = type[Any] | Content | Frames
"""What an answer holds: JSON of a type, or something else."""


class Query(msgspec.Struct, frozen=True):
    """A field of a route's query, which may be left out unless it is ``needed``. ``schema`` is its JSON Schema."""

    name: str
    schema: Mapping[str, Any]
    meaning: str
    needed: bool = False


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a route.

    ``answers`` are the good ones: what each holds, by status. ``refuses`` are statuses of refusals beside those that
    follow from the rest. ``scope`` is what the key needs; ``None`` needs no key. ``asks``: it reaches a model, with all
    that this can bring. ``relays``: an endpoint's own refusal comes as it is. ``idempotent``, ``resumes``: it knows the
    header ``Idempotency-Key``, ``Last-Event-ID``. ``form``: the body is no JSON, but a form with parts.
    """

    summary: str
    answers: Mapping[int, Sequence[Told]]
    body: type[Any] | None = None
    form: bool = False
    query: Sequence[Query] = ()
    refuses: Sequence[int] = ()
    scope: Permission | None = "infer"
    asks: bool = False
    relays: bool = False
    idempotent: bool = False
    resumes: bool = False

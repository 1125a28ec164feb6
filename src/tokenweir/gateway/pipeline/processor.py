"""What a processor is: a step that requests pass on their way to a model, and answers on their way back.

At the door (``gateway``) answers of direct requests come back as bytes, through a :class:`Sink`; at work (``worker``)
those of queued requests come back as events, through a :class:`Sieve`. The first processor of a list sees a request
first and its answer last. At the end (``collector``) an ended request passes with all its events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import msgspec

from tokenweir.config import SettingsModel
from tokenweir.core.clock import Clock
from tokenweir.core.events import Event
from tokenweir.core.requests import Json
from tokenweir.gateway.direct.relay import Sink
from tokenweir.gateway.queued.endings import Ended

Stage = Literal["gateway", "worker", "collector"]

GROUP = "tokenweir.processors"
"""Entry point group: the name is what ``use`` says, the object is a :class:`Kind`."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request on its way. ``fields`` is its body, an OpenAI one; whoever changes it makes another.

    ``request`` is its ``req_…``, ``path`` its route. ``relayed``: its answer comes back through this stage, and
    ``streamed`` says how. ``tier`` is known at the door alone. ``degraded``: the load of now has made less of it since.
    ``told`` is what is kept beside the body of a response, to be told again: ``echo`` of its parameters, its ``items``,
    and the messages ``before`` it.
    """

    stage: Stage
    request: str
    path: str
    fields: Mapping[str, Json]
    user: bytes
    team: bytes
    key: bytes
    tier: str = ""
    relayed: bool = True
    streamed: bool = False
    degraded: bool = False
    told: Mapping[str, Json] = {}

    @property
    def model(self) -> str:
        """The model that is asked for; "" where the body names none."""
        model = self.fields.get("model")
        return model if isinstance(model, str) else ""

    def having(self, **fields: Json) -> Ask:
        """Return the same request with other fields in its body."""
        return msgspec.structs.replace(self, fields={**self.fields, **fields})


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that needs no model: at the door the bytes of a 200 of this content type, at work its events.

    Events end in a ``Completed``; whoever plays them numbers them.
    """

    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    events: tuple[Event, ...] = ()


class Sieve(Protocol):
    """What the events of one answer pass. It may hold text back, but not beyond the end."""

    def feed(self, events: Sequence[Event]) -> list[Event]:
        """Return what goes on of these events; a ``Started`` begins the answer anew."""
        ...


class End(msgspec.Struct, frozen=True, kw_only=True):
    """An ended request before it is settled and filed. ``tell`` returns what its caller would be told of it."""

    ended: Ended
    tell: Callable[[Ended], dict[str, Json]]


class Processor:
    """A step that lets everything pass; a processor overrides what it has to do with."""

    guards_answers: ClassVar[bool] = False
    """Whether an answer that does not pass it would show what it should not."""

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the request as it goes on, or an answer. What it raises refuses the request."""
        return ask

    def around(self, ask: Ask, sink: Sink) -> Sink:
        """Return where the answer to a direct request is to be written, so that it comes to ``sink`` in the end."""
        del ask
        return sink

    def sieve(self, ask: Ask) -> Sieve | None:
        """Return what the events of the answer pass, if anything."""
        del ask
        return None

    async def ended(self, end: End) -> Ended:
        """Return an ended request as it is to be filed: the same events, whose text may differ."""
        return end.ended


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Where a processor is built. ``models`` are those that are served, at the door; ``place`` names its table."""

    stage: Stage
    clock: Clock
    place: str
    models: tuple[str, ...] = ()


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of processor: the schema of its keys, the stages it works in, and what makes one."""

    settings: type[SettingsModel]
    stages: frozenset[Stage]
    make: Callable[[Any, Context], Processor]

"""What is stored of a request: the body for the endpoint with what the worker must know, and its filed log."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tokenweir.core.events import Accepted, Cancelled, Completed, Event, Failed, Queued, Started
from tokenweir.core.ids import format_id
from tokenweir.core.requests import GenerateRequest, Kind, Sampling
from tokenweir.gateway.direct.body import RequestBody, read
from tokenweir.ports.requests import RequestRecord

_KINDS: Final[dict[str, Kind]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
}
PATHS: Final[dict[Kind, str]] = {kind: path for path, kind in _KINDS.items()}
_ENDS: Final = (Completed, Failed, Cancelled)
_NOTHING: Final = msgspec.Raw()


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored body of a request, before it is sealed.

    ``path`` is the endpoint's route and ``body`` what it is sent, both OpenAI's. ``pool`` is the caller's. With
    ``retry_after_tokens`` it may be tried again although tokens were streamed. ``said`` is for the door that took the
    request: what it needs beside the body to shape the answer. ``degraded`` is what was taken from it before that.
    ``trace`` is the ``traceparent`` that it was accepted in.
    """

    path: str
    body: msgspec.Raw
    pool: str = ""
    retry_after_tokens: bool = False
    said: msgspec.Raw = _NOTHING
    trace: str = ""
    degraded: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """Which of the interfaces it uses."""
        return _KINDS[self.path]

    def encode(self) -> bytes:
        """Return it as bytes."""
        return msgspec.json.encode(self)

    def read(self) -> RequestBody:
        """Return what is read of the body."""
        return read(bytes(self.body))

    def streamed(self, record: RequestRecord) -> bool:
        """Whether the endpoint is asked for a stream."""
        if self.kind == "embedding" or record.mode == "single":
            return False
        return record.mode == "stream" or bool(self.read().stream)

    def generate(self, *, streamed: bool) -> GenerateRequest:
        """Return as much of the request as a decoder of its answer needs."""
        body = self.read()
        return GenerateRequest(
            kind=self.kind, model=body.model, sampling=Sampling(n=body.n or 1), stream=streamed
        )


_decode_kept = msgspec.json.Decoder(Kept).decode
_encode_events = msgspec.msgpack.Encoder().encode
_decode_events = msgspec.msgpack.Decoder(tuple[Event, ...]).decode


def decode(data: bytes) -> Kept:
    """Read a stored body."""
    return _decode_kept(data)


def file_log(events: Sequence[Event]) -> bytes:
    """Return a whole log as one blob."""
    return zlib.compress(_encode_events(tuple(events)), 1)


def filed_log(blob: bytes) -> tuple[Event, ...]:
    """Read a filed log."""
    return _decode_events(zlib.decompress(blob))


def request_id(request: bytes) -> str:
    """Return ``req_…``."""
    return format_id("req", int.from_bytes(request, "big"))


def opening(record: RequestRecord) -> tuple[Event, ...]:
    """Return the events that the acceptance itself implies; the first lease holder writes them to the log."""
    accepted = Accepted(seq=0, request_id=request_id(record.request))
    return (accepted,) if record.mode == "direct" else (accepted, Queued(seq=1))


def ended(events: Sequence[Event]) -> bool:
    """Whether the last event is an end."""
    return bool(events) and isinstance(events[-1], _ENDS)


def last_answer(events: Iterable[Event]) -> list[Event]:
    """Return the events of the last attempt that began to answer, and of what followed."""
    found: list[Event] = []
    for event in events:
        if isinstance(event, Started):
            found.clear()
        found.append(event)
    return found

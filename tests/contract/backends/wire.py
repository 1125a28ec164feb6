"""Recorded answers, and the ways to feed them to a decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from tokenweir.backends.registry import backend
from tokenweir.core.events import Cancelled, Completed, Event, Failed
from tokenweir.core.requests import GenerateRequest, Json, Kind, Message
from tokenweir.ports.backend import HttpResponse, StreamDecoder
from tokenweir.ports.timing import TimingDecoder

FIXTURES = Path(__file__).parents[2] / "fixtures" / "wire"

ENGINES = {"mlx_lm": "openai", "sglang": "sglang", "sglang_jax": "sglang_jax", "tokenweir": "tokenweir"}
"""Fixture directory and the kind of backend that reads it."""

KINDS: dict[str, Kind] = {
    "/generate": "completion",
    "/v1/completions": "completion",
    "/v1/chat/completions": "chat",
    "/v1/embeddings": "embedding",
}


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    method: str
    path: str
    body: Json = None
    status: int
    content_type: str
    file: str
    cut: str = ""
    engine: str = ""

    @property
    def content(self) -> bytes:
        return (FIXTURES / self.engine / self.file).read_bytes()

    @property
    def response(self) -> HttpResponse:
        return HttpResponse(
            status=self.status, headers={"content-type": self.content_type}, body=self.content
        )

    @property
    def streamed(self) -> bool:
        return isinstance(self.body, dict) and self.body.get("stream") is True

    @property
    def request(self) -> GenerateRequest:
        """The request in our own terms."""
        return GenerateRequest(
            kind=KINDS[self.path],
            model="m",
            messages=(Message(role="user", content="hi"),),
            prompt="import os",
            inputs=("hi",),
            stream=self.streamed,
            extra={"route": "openai"}
            if self.path == "/v1/completions" and self.engine.startswith("sglang")
            else {},
        )

    def decoder(self) -> TimingDecoder:
        made = backend(ENGINES[self.engine]).decoder(self.request)
        assert isinstance(made, TimingDecoder)
        return made


class Manifest(msgspec.Struct):
    engine: str
    version: str
    note: str
    entries: list[Entry]


def entries(engine: str) -> list[Entry]:
    manifest = msgspec.json.decode((FIXTURES / engine / "manifest.json").read_bytes(), type=Manifest)
    return [msgspec.structs.replace(entry, engine=engine) for entry in manifest.entries]


ALL = [entry for engine in ENGINES for entry in entries(engine)]
ANSWERS = [entry for entry in ALL if entry.path in KINDS and entry.status == 200]
STREAMS = [entry for entry in ANSWERS if entry.streamed]
ERRORS = [entry for entry in ALL if entry.status >= 400]


def entry_id(entry: Entry) -> str:
    return f"{entry.engine}-{entry.name}"


def drive(decoder: StreamDecoder, pieces: Iterable[bytes]) -> list[tuple[int, Event]]:
    """Feed the pieces and end the body."""
    events: list[tuple[int, Event]] = []
    for piece in pieces:
        events += decoder.feed(piece)
    return [*events, *decoder.end()]


def pieces(body: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Return the body cut at the given places."""
    return [body[a:b] for a, b in pairwise([0, *sorted(cuts), len(body)])]


def cuts(body: bytes) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, len(body)), max_size=12)


def endings(events: Iterable[tuple[int, Event]]) -> int:
    return sum(isinstance(event, Completed | Failed | Cancelled) for _, event in events)

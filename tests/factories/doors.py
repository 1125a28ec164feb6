"""The runtime's HTTP door over a fake engine, called in memory: what a server would do, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tokenweir.asgi.call import Event
from tokenweir.core.clock import SystemClock
from tokenweir.core.requests import Json
from tokenweir.runtime.http.app import App
from tokenweir.runtime.http.door import Build, Door, Limits
from tokenweir.runtime.http.fakes import FakeServing
from tokenweir.runtime.http.metrics import Metrics
from tokenweir.runtime.http.serving import Serving

MESSAGES: Json = [{"role": "user", "content": "hi"}]
HERE = {"content-type": "application/json", "host": "127.0.0.1:8100"}


def make_app(
    serving: Serving | None = None,
    *,
    key: str | None = None,
    limits: Limits | None = None,
    log_prompts: bool = False,
) -> App:
    """Return the application over a fake engine."""
    clock = SystemClock()
    build = Build(version="1.2.3", commit="c" * 40)
    return App(
        Door(
            serving or FakeServing(),
            metrics=Metrics(clock),
            clock=clock,
            build=build,
            key=key,
            limits=limits,
            log_prompts=log_prompts,
        )
    )


def dig(value: Json, *path: str | int) -> Json:
    """Return what lies at a path of keys and places."""
    for step in path:
        if isinstance(step, str):
            assert isinstance(value, dict), value
            value = value[step]
        else:
            assert isinstance(value, list), value
            value = value[step]
    return value


@dataclass
class Exchange:
    """One request in the server's place: what the client sends, and what came back so far.

    ``reading`` cleared is a client that does not read: the application waits in its next send.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: HERE)
    client: str = "127.0.0.1"
    pieces: int = 1
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict[str, str])
    sent: list[bytes] = field(default_factory=list[bytes])
    whole: bool = False
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    parts: list[bytes] = field(default_factory=list[bytes])

    def __post_init__(self) -> None:
        self.reading.set()
        size = max(1, -(-len(self.body) // self.pieces))
        self.parts = [self.body[at : at + size] for at in range(0, len(self.body), size)] or [b""]

    @property
    def text(self) -> str:
        """Everything that came."""
        return b"".join(self.sent).decode()

    @property
    def json(self) -> dict[str, Json]:
        """The answer, which is JSON."""
        return msgspec.json.decode(b"".join(self.sent), type=dict[str, Json])

    @property
    def error(self) -> dict[str, Json]:
        """The error of the answer."""
        found = self.json["error"]
        assert isinstance(found, dict)
        return found

    def events(self) -> list[dict[str, Json]]:
        """The chunks of a stream, without the last mark."""
        lines = [line.removeprefix("data: ") for line in self.text.split("\n\n") if line.startswith("data: ")]
        return [msgspec.json.decode(line, type=dict[str, Json]) for line in lines if line != "[DONE]"]

    async def run(self, app: App) -> Exchange:
        """Let the application answer."""
        scope = {
            "type": "http",
            "method": self.method,
            "path": self.path,
            "headers": [(name.encode(), value.encode()) for name, value in self.headers.items()],
            "client": (self.client, 5000),
        }
        await app(scope, self._receive, self._send)
        return self

    async def until(self, count: int) -> None:
        """Wait until so many pieces came."""
        async with asyncio.timeout(10), self.moved:
            await self.moved.wait_for(lambda: len(self.sent) >= count)

    async def _receive(self) -> Event:
        if self.parts:
            part = self.parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.parts)}
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        await self.reading.wait()
        async with self.moved:
            if event["type"] == "http.response.start":
                self.status = event["status"]
                self.answer_headers = {name.decode(): value.decode() for name, value in event["headers"]}
            else:
                assert not self.whole, "something was sent after the end"
                if event["body"]:
                    self.sent.append(event["body"])
                self.whole = not event.get("more_body", False)
            self.moved.notify_all()


def post(path: str, body: Json, **options: object) -> Exchange:
    """Return a request with a JSON body."""
    return Exchange("POST", path, msgspec.json.encode(body), **options)  # pyright: ignore[reportArgumentType]


def ask(app: App, exchange: Exchange) -> Exchange:
    """Return the exchange after the application has answered."""

    async def within_time() -> Exchange:
        async with asyncio.timeout(20):
            return await exchange.run(app)

    return asyncio.run(within_time())

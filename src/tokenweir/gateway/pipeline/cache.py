"""``use = "cache"``: the same request again gets the answer that is kept, without a model."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from pydantic import Field

from tokenweir.config import DurationNs, SettingsModel
from tokenweir.core.clock import Clock
from tokenweir.core.events import Completed, Event, Started, Token, Usage
from tokenweir.gateway.direct.relay import Headers, Sink
from tokenweir.gateway.pipeline.processor import Ask, Context, Kind, Processor, Ready, Sieve

_S: Final = 1_000_000_000
_OK: Final = 200
_DONE: Final = b"data: [DONE]"
_HIT: Final = (b"x-weir-cache", b"hit")
_MISS: Final = (b"x-weir-cache", b"miss")


class CacheSettings(SettingsModel):
    """Keys of ``use = "cache"``."""

    ttl: DurationNs = Field(default=3600 * _S, gt=0, description="How long an answer is kept.")
    entries: int = Field(
        default=10_000, ge=1, description="How many answers are kept; the oldest use goes first."
    )
    total_bytes: int = Field(default=64 << 20, ge=1024, description="How much they take in all.")
    answer_bytes: int = Field(default=1 << 20, ge=64, description="The longest answer that is kept.")
    per: Literal["user", "team", "everyone"] = Field(
        default="user", description="Who gets the answers of whom: one's own, those of one's team, all."
    )
    ignore: tuple[str, ...] = Field(
        default=("metadata", "user"), description="Fields of the body that do not make a request another one."
    )
    sampled: bool = Field(
        default=True,
        description="Whether requests are answered alike that draw: temperature above 0 and no seed.",
    )


class Shelf:
    """Answers by key, within bounds of number, size and age."""

    def __init__(self, *, entries: int, size: int, ttl_ns: int, clock: Clock) -> None:
        self._most, self._most_bytes, self._ttl_ns = entries, size, ttl_ns
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[int, int, Ready]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self._kept)

    def get(self, key: bytes) -> Ready | None:
        """Return an answer that is not too old."""
        found = self._kept.get(key)
        if found is None:
            return None
        if found[0] <= self._clock.monotonic_ns():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[2]

    def put(self, key: bytes, ready: Ready, size: int) -> None:
        """Keep an answer, and let go of those whose last use is longest ago."""
        if key in self._kept:
            self._drop(key)
        self._kept[key] = (self._clock.monotonic_ns() + self._ttl_ns, size, ready)
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        self._bytes -= self._kept.pop(key)[1]


class Cache(Processor):
    """Keeps whole answers of this process in memory."""

    def __init__(self, settings: CacheSettings, clock: Clock) -> None:
        self._settings = settings
        self._shelf = Shelf(
            entries=settings.entries, size=settings.total_bytes, ttl_ns=settings.ttl, clock=clock
        )

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the answer that is kept, or the request."""
        if not self._may_keep(ask):
            return ask
        return self._shelf.get(self._key(ask)) or ask

    def around(self, ask: Ask, sink: Sink) -> Sink:
        """Keep a direct answer."""
        if ask.degraded or not self._may_keep(ask):
            return sink
        return _KeepingSink(self, self._key(ask), sink)

    def sieve(self, ask: Ask) -> Sieve | None:
        """Keep a queued answer."""
        return _KeepingSieve(self, self._key(ask)) if self._may_keep(ask) else None

    def keep(self, key: bytes, ready: Ready, size: int) -> None:
        """Keep an answer, unless it is too long."""
        if size <= self.answer_bytes:
            self._shelf.put(key, ready, size)

    @property
    def answer_bytes(self) -> int:
        """The longest answer that is kept."""
        return min(self._settings.answer_bytes, self._settings.total_bytes)

    def _may_keep(self, ask: Ask) -> bool:
        # What does not come back through here cannot be kept, and cannot be answered here either.
        if not ask.relayed:
            return False
        fields = ask.fields
        if self._settings.sampled or "input" in fields:
            return True
        return fields.get("temperature") == 0 or fields.get("seed") is not None

    def _key(self, ask: Ask) -> bytes:
        who = {"user": ask.user, "team": ask.team or ask.user, "everyone": b""}[self._settings.per]
        fields = {name: value for name, value in ask.fields.items() if name not in self._settings.ignore}
        said = msgspec.json.encode([who.hex(), ask.path, ask.streamed, fields], order="sorted")
        return hashlib.sha256(said).digest()


class _KeepingSink:
    """Lets an answer pass, and keeps it when it was whole and good."""

    def __init__(self, cache: Cache, key: bytes, sink: Sink) -> None:
        self._cache = cache
        self._key = key
        self._sink = sink
        self._pieces: list[bytes] = []
        self._size = 0
        self._type = b""

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the head."""
        self._type = _content_type(headers) if status == _OK else b""
        await self._sink.begin(status, (*headers, _MISS))

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all of an answer, and keep it."""
        if status == _OK:
            kept = Ready(body=body, content_type=_content_type(headers), headers=(_HIT,))
            self._cache.keep(self._key, kept, len(body))
        await self._sink.whole(status, (*headers, _MISS), body)

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body."""
        self._take(piece)
        await self._sink.write(piece)

    async def end(self, piece: bytes = b"") -> None:
        """Send the last piece; a stream that was said to be done is kept."""
        self._take(piece)
        body = b"".join(self._pieces)
        if self._type and self._size <= self._cache.answer_bytes and _DONE in body[-64:]:
            kept = Ready(body=body, content_type=self._type, headers=(_HIT,))
            self._cache.keep(self._key, kept, len(body))
        await self._sink.end(piece)

    def _take(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._cache.answer_bytes:
            self._pieces.append(piece)
        else:
            self._pieces.clear()


def _content_type(headers: Headers) -> bytes:
    return next((value for name, value in headers if name == b"content-type"), b"application/json")


class _KeepingSieve:
    """Lets events pass, and keeps them when the answer was completed. Told again it has used no tokens."""

    def __init__(self, cache: Cache, key: bytes) -> None:
        self._cache = cache
        self._key = key
        self._events: list[Event] = []
        self._size = 0

    def feed(self, events: Sequence[Event]) -> list[Event]:
        """Return the events as they are."""
        for event in events:
            match event:
                case Started():
                    self._events.clear()
                    self._events.append(msgspec.structs.replace(event, upstream_id=""))
                    self._size = 0
                case Token():
                    self._size += len(msgspec.json.encode(event))
                    if self._size <= self._cache.answer_bytes:
                        self._events.append(event)
                case Completed():
                    self._size += len(msgspec.json.encode(event))
                    kept = (*self._events, Usage(seq=0, input_tokens=0, output_tokens=0), event)
                    self._cache.keep(self._key, Ready(events=kept), self._size)
                case _:
                    pass
        return list(events)


def _make(settings: CacheSettings, context: Context) -> Processor:
    return Cache(settings, context.clock)


KIND = Kind(settings=CacheSettings, stages=frozenset({"gateway", "worker"}), make=_make)

"""A facade without an engine: answers what it was told to, for tests of whatever stands before it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Literal

import msgspec

from tokenweir.core.breaker import Closed
from tokenweir.core.errors import ModelNotLoadedError, WeirError
from tokenweir.core.events import Accepted, Completed, Event, Started, Token, Usage
from tokenweir.core.requests import GenerateRequest, Message
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.bridge.messages import Embedded
from tokenweir.runtime.health import EngineHealth, ModelStatus, SchedulerStatus
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.supervision.lifecycle import Ready

FAKE_CARD = ModelCard(
    name="fake",
    path="/models/fake",
    revision="f" * 64,
    architecture="fake",
    context_tokens=1024,
    vocabulary=256,
    weights_bytes=1000,
    kv_bytes_per_token=10,
    capabilities=("chat", "completion", "embedding", "tools", "guidance", "logprobs", "seed"),
)

_PLAIN = RunOptions()

Script = Callable[[GenerateRequest, RunOptions], Iterable[Event] | WeirError]
"""What to answer to a request: events, or an error that is raised before the first of them."""


def spoken(text: str, *, finish: str = "stop", choices: int = 1) -> list[Event]:
    """Return the events of an answer that says ``text`` word by word, in every choice."""
    words = [word + " " for word in text.split(" ")[:-1]] + text.split(" ")[-1:]
    tokens: list[Event] = [
        Token(seq=2 + at * choices + index, text=word, count=1, index=index)
        for at, word in enumerate(words)
        for index in range(choices)
    ]
    seq = 2 + len(tokens)
    return [
        Accepted(seq=0, request_id="req_fake"),
        Started(seq=1, model="fake"),
        *tokens,
        Usage(seq=seq, input_tokens=7, output_tokens=len(tokens), cached_tokens=3),
        Completed(seq=seq + 1, finish_reason=finish),
    ]


class FakeServing:
    """The engine's facade with scripted answers. Tokens are UTF-8 bytes; a vector tells a text's length.

    ``asked`` lists the requests, ``cancelled`` counts answers that were closed before their end, ``taken`` the
    events that were taken; ``began`` and ``ended`` are set by the first of each. While ``hold`` is not set, answers
    stop before their next token. ``statuses`` and ``state`` may be changed.
    """

    def __init__(self, script: Script | None = None, *, cards: Sequence[ModelCard] = (FAKE_CARD,)) -> None:
        self._script: Script = script or (
            lambda request, _: spoken("hello there", choices=request.sampling.n)
        )
        self.statuses: dict[str, ModelStatus] = {
            card.name: ModelStatus(card=card, state="loaded", answered=True) for card in cards
        }
        self.asked: list[tuple[GenerateRequest, RunOptions]] = []
        self.taken = 0
        self.cancelled = 0
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()
        self.state = EngineHealth(
            lifecycle=Ready(epoch=1, pid=1, since_ns=0),
            breaker=Closed(),
            scheduler=SchedulerStatus(state="enabled"),
            engine="fake",
        )

    async def generate(self, request: GenerateRequest, options: RunOptions = _PLAIN) -> AsyncGenerator[Event]:
        """Yield what the script says."""
        self.asked.append((request, options))
        self.began.set()
        events = self._script(request, options)
        if isinstance(events, WeirError):
            raise events
        whole = False
        try:
            for event in events:
                # Others get their turn between two events, as they do where events come over a socket.
                await asyncio.sleep(0)
                if isinstance(event, Token):
                    await self.hold.wait()
                self.taken += 1
                yield event
            whole = True
        finally:
            self.cancelled += not whole
            self.ended.set()

    async def embed(self, model: str, inputs: Sequence[str]) -> Embedded:
        """Return vectors of two numbers and length 1, by the length of each text."""
        self._status(model)
        angles = [len(text) / 100 for text in inputs]
        vectors = tuple((math.cos(angle), math.sin(angle)) for angle in angles)
        return Embedded(vectors=vectors, input_tokens=sum(len(text.encode()) for text in inputs))

    async def tokenize(self, model: str, text: str | Sequence[Message]) -> list[int]:
        """Return the text's bytes, or those of the messages' contents."""
        self._status(model)
        plain = text if isinstance(text, str) else "".join(str(turn.content) for turn in text)
        return list(plain.encode())

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Return the text of bytes."""
        self._status(model)
        return bytes(tokens).decode(errors="replace")

    def models(self) -> Sequence[ModelStatus]:
        """Return the models."""
        return tuple(self.statuses.values())

    def health(self) -> EngineHealth:
        """Return ``state`` with the models of now."""
        return msgspec.structs.replace(self.state, models=tuple(self.statuses.values()))

    async def load(
        self,
        path: str,
        *,
        name: str | None = None,
        weight_bits: Literal[4, 8] | None = None,
        context_tokens: int | None = None,
        draft: str | None = None,
    ) -> ModelCard:
        """Add a model with these options."""
        card = msgspec.structs.replace(
            FAKE_CARD,
            path=path,
            name=name or path.rpartition("/")[2],
            weight_bits=weight_bits,
            context_tokens=context_tokens or FAKE_CARD.context_tokens,
            draft=draft,
        )
        self.statuses[card.name] = ModelStatus(card=card, state="loaded")
        return card

    async def unload(self, name: str) -> None:
        """Forget a model."""
        self._status(name)
        del self.statuses[name]

    def _status(self, name: str) -> ModelStatus:
        if name not in self.statuses:
            raise ModelNotLoadedError(f"there is no model {name!r}")
        return self.statuses[name]

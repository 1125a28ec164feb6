"""What the doors need of the engine's facade.

:class:`tokenweir.runtime.engine.Engine` offers it, and so does :class:`tokenweir.runtime.http.fakes.FakeServing`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol

from tokenweir.core.events import Event
from tokenweir.core.requests import GenerateRequest, Message
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.bridge.messages import Embedded
from tokenweir.runtime.health import EngineHealth, ModelStatus
from tokenweir.runtime.options import RunOptions


class Generating(Protocol):
    """Makes text and vectors."""

    def generate(self, request: GenerateRequest, options: RunOptions = ...) -> AsyncGenerator[Event]:
        """Yield the events of a request, no faster than they are taken; closing it cancels the request.

        Raises:
            WeirError: the request is refused; no token came.
        """
        ...

    async def embed(self, model: str, inputs: Sequence[str]) -> Embedded:
        """Return a vector for each input. Raises WeirError."""
        ...


class Tokenizing(Protocol):
    """Turns text into tokens and back."""

    async def tokenize(self, model: str, text: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a text, or of messages in the chat template. Raises WeirError."""
        ...

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Return the text of token ids. Raises WeirError."""
        ...


class Residing(Protocol):
    """Keeps models."""

    def models(self) -> Sequence[ModelStatus]:
        """Return the models that may be asked for, in a stable order."""
        ...

    def health(self) -> EngineHealth:
        """Return the state of everything, as known now; asks nobody."""
        ...

    async def load(
        self,
        path: str,
        *,
        name: str | None = None,
        weight_bits: Literal[4, 8] | None = None,
        context_tokens: int | None = None,
        draft: str | None = None,
    ) -> ModelCard:
        """Load a model and return its card. Raises WeirError."""
        ...

    async def unload(self, name: str) -> None:
        """Give a model's memory back. Raises ModelNotLoadedError."""
        ...


class Serving(Generating, Tokenizing, Residing, Protocol):
    """The engine's facade, as the doors see it."""

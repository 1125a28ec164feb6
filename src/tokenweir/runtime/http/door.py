"""What every handler of the HTTP door has at hand."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import msgspec

from tokenweir.asgi.call import Call
from tokenweir.core.clock import Clock
from tokenweir.core.errors import ModelNotLoadedError, ParameterError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.http.metrics import Meter, Metrics
from tokenweir.runtime.http.serving import Serving
from tokenweir.runtime.images import ImageLimits

_FINGERPRINT: Final = 16
_NS_PER_S: Final = 1_000_000_000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may send, and how slowly."""

    body_bytes: int = 64 << 20
    read_timeout_ns: int = 30_000_000_000
    images: ImageLimits = ImageLimits()


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """What is running: version and commit of Tokenweir. ``commit`` is ``None`` where it is not known."""

    version: str
    commit: str | None = None


class Door:
    """The engine's facade, the limits, the counters and the clock. ``key`` is what clients must send, if any.

    ``log_prompts`` lets the log tell what was asked and answered.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        metrics: Metrics,
        clock: Clock,
        build: Build,
        limits: Limits | None = None,
        key: str | None = None,
        log_prompts: bool = False,
    ) -> None:
        self.serving = serving
        self.metrics = metrics
        self.clock = clock
        self.build = build
        self.limits = limits or Limits()
        self.key = key
        self.log_prompts = log_prompts
        self.started_s = clock.wall_ns() // _NS_PER_S

    @property
    def image_limits(self) -> ImageLimits:
        """What images a request may hold."""
        return self.limits.images

    async def json(self, call: Call) -> dict[str, Json]:
        """Return a request's JSON object, within the limits."""
        return await call.json(self.limits.body_bytes, self.limits.read_timeout_ns)

    @contextmanager
    def metered(self, call: Call, model: str) -> Generator[Meter]:
        """Measure a request for a model that exists, and let the log tell of it."""
        call.model = model
        with self.metrics.request(call.path, model) as meter:
            try:
                yield meter
            finally:
                call.meter = meter

    def card(self, model: str) -> ModelCard:
        """Return the card of a model; an empty name means the only one.

        Raises:
            ModelNotLoadedError: there is none of that name.
            ParameterError: the name is missing, and there are several.
        """
        cards = [one.card for one in self.serving.models()]
        if not model and len(cards) == 1:
            return cards[0]
        found = next((card for card in cards if card.name == model), None)
        if found is not None:
            return found
        names = ", ".join(repr(card.name) for card in cards) or "none is loaded"
        if not model:
            raise ParameterError(
                "the request names no model",
                param="model",
                reason="missing_required_parameter",
                mend=f"send one of: {names}",
            )
        raise ModelNotLoadedError(f"there is no model {model!r}", mend=f"the models: {names}")

    def fingerprint(self, card: ModelCard) -> str:
        """Return OpenAI's ``system_fingerprint``: it changes when the model's files do."""
        return f"fp_{card.revision[:_FINGERPRINT]}"

"""``use = "route"``: a rule that sends requests to another model."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from pydantic import Field

from tokenweir.config import SettingsModel
from tokenweir.core.errors import ConfigError
from tokenweir.gateway.pipeline.processor import Ask, Context, Kind, Processor, Ready

_PROMPTS: Final = ("messages", "prompt", "input")
_PARTS: Final = 1 << 32


class RouteSettings(SettingsModel):
    """Keys of ``use = "route"``. All that is said must hold; ``models`` says which models are rerouted."""

    to: str = Field(min_length=1, description="The model that is asked instead.")
    tiers: tuple[str, ...] = Field(default=(), description="Callers of these tiers alone.")
    longer_than: int | None = Field(
        default=None, ge=0, description="Prompts of more bytes than this, as JSON."
    )
    shorter_than: int | None = Field(default=None, ge=1, description="Prompts of fewer bytes than this.")
    tools: bool | None = Field(default=None, description="Requests that offer tools, or that offer none.")
    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="This share of the users, always the same ones, chosen by their ids.",
    )


class Route(Processor):
    """Sends requests to another model."""

    def __init__(self, settings: RouteSettings) -> None:
        self._settings = settings

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the request, for the other model where the rule holds."""
        if ask.model == self._settings.to or not self._holds(ask):
            return ask
        return ask.having(model=self._settings.to)

    def _holds(self, ask: Ask) -> bool:
        rule = self._settings
        if rule.tiers and ask.tier not in rule.tiers:
            return False
        if rule.tools is not None and rule.tools != bool(ask.fields.get("tools")):
            return False
        if rule.longer_than is not None or rule.shorter_than is not None:
            prompts = [ask.fields[name] for name in _PROMPTS if name in ask.fields]
            size = sum(len(msgspec.json.encode(prompt)) for prompt in prompts)
            if rule.longer_than is not None and size <= rule.longer_than:
                return False
            if rule.shorter_than is not None and size >= rule.shorter_than:
                return False
        return rule.share >= 1 or part_of(ask.user) < rule.share * _PARTS


def part_of(user: bytes) -> int:
    """Return where a user stands among 2**32 parts of all."""
    return int.from_bytes(hashlib.blake2b(user, digest_size=4, person=b"weir-route").digest(), "big")


def _make(settings: RouteSettings, context: Context) -> Processor:
    if settings.to not in context.models:
        raise ConfigError(
            f"{context.place}: no endpoint serves the model {settings.to!r}",
            mend=f"models here: {', '.join(context.models) or 'none'}",
        )
    return Route(settings)


KIND = Kind(settings=RouteSettings, stages=frozenset({"gateway"}), make=_make)

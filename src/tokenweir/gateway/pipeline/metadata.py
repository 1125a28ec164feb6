"""``use = "metadata"``: fields that are put into the body for the model server, or kept from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from pydantic import Field, field_validator, model_validator

from tokenweir.config import SettingsModel
from tokenweir.core.ids import format_id
from tokenweir.core.requests import Json
from tokenweir.gateway.pipeline.processor import Ask, Context, Kind, Processor, Ready

_PLACES: Final = frozenset({"request_id", "user", "team", "key", "tier", "model", "path"})
_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_KEPT: Final = frozenset({"model", "messages", "prompt", "input", "stream"})


class MetadataSettings(SettingsModel):
    """Keys of ``use = "metadata"``."""

    add: dict[str, str] = Field(
        default={},
        description="Fields and their texts, with {request_id}, {user}, {team}, {key}, {tier}, {model}, {path}.",
    )
    into: str = Field(
        default="metadata", description="The field of the body that holds them; empty: the body itself."
    )
    remove: tuple[str, ...] = Field(default=(), description="Fields of the body that are left out.")

    @field_validator("add")
    @classmethod
    def _known(cls, add: dict[str, str]) -> dict[str, str]:
        for name, text in add.items():
            for place in _PLACE.findall(text):
                if place not in _PLACES:
                    reason = f"{name} holds the unknown {{{place}}}; there are {', '.join(sorted(_PLACES))}"
                    raise ValueError(reason)
        return add

    @model_validator(mode="after")
    def _harmless(self) -> MetadataSettings:
        touched = set(self.remove) | (set(self.add) if not self.into else {self.into})
        if touched & _KEPT:
            reason = f"{', '.join(sorted(touched & _KEPT))} cannot be changed as metadata"
            raise ValueError(reason)
        if not self.add and not self.remove:
            reason = "metadata needs add or remove"
            raise ValueError(reason)
        return self


class Metadata(Processor):
    """Adds fields to bodies and takes some out."""

    def __init__(self, settings: MetadataSettings) -> None:
        self._settings = settings

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the request with its fields."""
        settings = self._settings
        fields = {name: value for name, value in ask.fields.items() if name not in settings.remove}
        added: dict[str, Json] = {name: _filled(text, facts(ask)) for name, text in settings.add.items()}
        if added and settings.into:
            before = fields.get(settings.into)
            fields[settings.into] = {**(before if isinstance(before, dict) else {}), **added}
        else:
            fields.update(added)
        return ask if fields == ask.fields else msgspec.structs.replace(ask, fields=fields)


def facts(ask: Ask) -> Mapping[str, str]:
    """Return what is known of a request, as texts."""
    return {
        "request_id": ask.request,
        "user": shown("user", ask.user),
        "team": shown("team", ask.team),
        "key": shown("key", ask.key),
        "tier": ask.tier,
        "model": ask.model,
        "path": ask.path,
    }


def shown(prefix: str, number: bytes) -> str:
    """Return an id as text; "" where there is none."""
    return format_id(prefix, int.from_bytes(number, "big")) if number else ""


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda match: values[match[1]], text)


def _make(settings: MetadataSettings, context: Context) -> Processor:
    del context
    return Metadata(settings)


KIND = Kind(settings=MetadataSettings, stages=frozenset({"gateway", "worker"}), make=_make)

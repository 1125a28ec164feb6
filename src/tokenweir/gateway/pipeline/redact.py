"""``use = "redact"``: what is taken out of prompts, answers and filed logs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import msgspec
from pydantic import Field, field_validator, model_validator

from tokenweir.config import SettingsModel
from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json
from tokenweir.gateway.direct.relay import Sink
from tokenweir.gateway.pipeline.patterns import BUILT_IN, Pattern, Redactor
from tokenweir.gateway.pipeline.processor import Ask, Context, End, Kind, Processor, Ready, Sieve
from tokenweir.gateway.pipeline.redacted_answers import RedactedEvents, RedactedSink, redacted_log
from tokenweir.gateway.queued.endings import Ended

_PROMPTS: Final = ("messages", "prompt", "input", "tools")
_ECHOED: Final = ("instructions", "tools")
_TOLD: Final = ("items", "before")
_OPAQUE: Final = frozenset(
    {
        "url",
        "image_url",
        "type",
        "role",
        "id",
        "call_id",
        "tool_call_id",
        "data",
        "format",
    }
)
"""Fields that are no text of anybody: pictures and sounds, names of the protocol."""


class RedactSettings(SettingsModel):
    """Keys of ``use = "redact"``."""

    patterns: tuple[str, ...] = Field(
        default=(), description="What is taken out: email, card, iban, ipv4, phone, secret."
    )
    expressions: tuple[str, ...] = Field(
        default=(), description="Regular expressions of what is taken out too."
    )
    replacement: str = Field(
        default="[{name}]", description="What stands in its place; {name} is the pattern's name, or custom."
    )
    prompts: bool = Field(default=True, description="Whether prompts are redacted.")
    answers: bool = Field(default=False, description="Whether answers are redacted.")
    streams: Literal["hold", "refuse"] = Field(
        default="hold",
        description="Where answers are: hold their last characters back, or refuse requests for streams.",
    )
    longest: int = Field(
        default=128,
        ge=8,
        le=4096,
        description="Characters that are held back: the longest match found in a stream.",
    )

    @field_validator("patterns")
    @classmethod
    def _known(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for name in patterns:
            if name not in BUILT_IN:
                reason = f"the pattern {name!r} is unknown; there are {', '.join(BUILT_IN)}"
                raise ValueError(reason)
        return patterns

    @field_validator("expressions")
    @classmethod
    def _readable(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        for text in expressions:
            try:
                empty = re.compile(text).fullmatch("")
            except re.error as error:
                reason = f"{text!r} is no regular expression: {error}"
                raise ValueError(reason) from error
            if empty is not None:
                reason = f"{text!r} matches nothing at all, which is everywhere"
                raise ValueError(reason)
        return expressions

    @model_validator(mode="after")
    def _does_something(self) -> RedactSettings:
        if not self.patterns and not self.expressions:
            reason = "redact needs patterns or expressions"
            raise ValueError(reason)
        return self

    def redactor(self) -> Redactor:
        """Return what finds and replaces."""
        found = [BUILT_IN[name] for name in self.patterns]
        for number, text in enumerate(self.expressions):
            # Each has a name of its own, that they are told apart; all are shown as custom.
            found.append(Pattern(name=f"custom{number or ''}", expression=re.compile(text)))
        return Redactor(found, replacement=self.replacement, longest=self.longest)


class Redact(Processor):
    """Takes what patterns match out of prompts."""

    def __init__(self, settings: RedactSettings) -> None:
        self._settings = settings
        self._redactor = settings.redactor()

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the request with redacted prompts."""
        if not self._settings.prompts:
            return ask
        fields = self._changed(ask.fields, _PROMPTS)
        if fields:
            ask = ask.having(**fields)
        told = self._changed(ask.told, _TOLD)
        echo = ask.told.get("echo")
        if isinstance(echo, dict) and (echoed := self._changed(echo, _ECHOED)):
            told["echo"] = {**echo, **echoed}
        return msgspec.structs.replace(ask, told={**ask.told, **told}) if told else ask

    def _changed(self, fields: Mapping[str, Json], names: Sequence[str]) -> dict[str, Json]:
        """Return those of the fields that are other ones when they are redacted."""
        found = {name: redacted(fields[name], self._redactor) for name in names if name in fields}
        return {name: value for name, value in found.items() if value != fields[name]}


class RedactAnswers(Redact):
    """Takes what patterns match out of prompts, where that is asked for, and out of answers."""

    guards_answers: ClassVar[bool] = True

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the request; refuse one whose answer could not be redacted."""
        if ask.relayed and ask.streamed and self._settings.streams == "refuse":
            raise ParameterError(
                "answers are redacted here, and not in streams",
                param="stream",
                mend="ask for a whole answer: leave stream out",
            )
        shows = ask.fields.get("logprobs")
        if (shows is not None and shows is not False) or ask.fields.get("top_logprobs"):
            raise ParameterError(
                "answers are redacted here, and log probabilities would show what was taken out",
                param="logprobs",
                mend="leave logprobs out",
            )
        return await super().ask(ask)

    def around(self, ask: Ask, sink: Sink) -> Sink:
        """Redact a direct answer."""
        return sink if ask.path.endswith("/embeddings") else RedactedSink(self._redactor, sink)

    def sieve(self, ask: Ask) -> Sieve | None:
        """Redact a queued answer."""
        return None if ask.path.endswith("/embeddings") else RedactedEvents(self._redactor)


class RedactLog(Processor):
    """Takes what patterns match out of logs before they are filed; who followed them live has seen them."""

    def __init__(self, settings: RedactSettings) -> None:
        self._redactor = settings.redactor()

    async def ended(self, end: End) -> Ended:
        """Return the ended request with a redacted log."""
        events = redacted_log(end.ended.events, self._redactor)
        return end.ended if events == end.ended.events else msgspec.structs.replace(end.ended, events=events)


def redacted(value: Json, redactor: Redactor) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Return a value whose texts are redacted, all but those that are nobody's."""
    if isinstance(value, str):
        return redactor.whole(value)
    if isinstance(value, list):
        return [redacted(one, redactor) for one in value]
    if isinstance(value, dict):
        return {
            name: one if name in _OPAQUE and isinstance(one, str) else redacted(one, redactor)
            for name, one in value.items()
        }
    return value


def _make(settings: RedactSettings, context: Context) -> Processor:
    if context.stage == "collector":
        return RedactLog(settings)
    return RedactAnswers(settings) if settings.answers else Redact(settings)


KIND = Kind(settings=RedactSettings, stages=frozenset({"gateway", "worker", "collector"}), make=_make)

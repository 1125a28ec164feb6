"""``use = "template"``: what is put around prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from pydantic import Field, field_validator, model_validator

from tokenweir.config import SettingsModel
from tokenweir.core.requests import Json
from tokenweir.gateway.pipeline.processor import Ask, Context, Kind, Processor, Ready

_PROMPT = "{prompt}"


class TemplateSettings(SettingsModel):
    """Keys of ``use = "template"``."""

    system: str = Field(default="", description="Text for the system message of a chat.")
    where: Literal["before", "after", "missing"] = Field(
        default="before",
        description="Where it stands to a system message that the caller sent; missing: only where he sent none.",
    )
    prompt: str = Field(
        default="",
        description="Text around the last user message, or a completion's prompt: {prompt} is that.",
    )

    @field_validator("prompt")
    @classmethod
    def _has_place(cls, prompt: str) -> str:
        if prompt and _PROMPT not in prompt:
            reason = "the prompt template has no {prompt}, so that nobody's prompt would be in it"
            raise ValueError(reason)
        return prompt

    @model_validator(mode="after")
    def _does_something(self) -> TemplateSettings:
        if not self.system and not self.prompt:
            reason = "a template needs system or prompt"
            raise ValueError(reason)
        return self


class Template(Processor):
    """Puts texts around prompts."""

    def __init__(self, settings: TemplateSettings) -> None:
        self._settings = settings

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the request with the texts in its messages or its prompt."""
        messages, prompt = ask.fields.get("messages"), ask.fields.get("prompt")
        if isinstance(messages, list):
            return ask.having(messages=self._messages(messages))
        if not self._settings.prompt:
            return ask
        if isinstance(prompt, str):
            return ask.having(prompt=self._around(prompt))
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
            return ask.having(prompt=[self._around(str(one)) for one in prompt])
        return ask

    def _around(self, text: str) -> str:
        return self._settings.prompt.replace(_PROMPT, text)

    def _messages(self, messages: Sequence[Json]) -> list[Json]:
        found = list(messages)
        if self._settings.prompt:
            for place in range(len(found) - 1, -1, -1):
                message = found[place]
                if isinstance(message, dict) and message.get("role") == "user":
                    found[place] = {**message, "content": self._content(message.get("content"))}
                    break
        if self._settings.system:
            self._add_system(found)
        return found

    def _content(self, content: Json) -> Json:
        """Return content with the text around it: around its first text, where it has several parts."""
        if isinstance(content, str):
            return self._around(content)
        if not isinstance(content, list):
            return content
        parts = list(content)
        for place, part in enumerate(parts):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text = cast("str", part["text"])
                parts[place] = {**part, "text": self._around(text)}
                break
        return parts

    def _add_system(self, messages: list[Json]) -> None:
        ours: Mapping[str, Json] = {"role": "system", "content": self._settings.system}
        theirs = [
            place
            for place, message in enumerate(messages)
            if isinstance(message, dict) and message.get("role") in {"system", "developer"}
        ]
        if not theirs or self._settings.where == "before":
            messages.insert(0, dict(ours))
        elif self._settings.where == "after":
            messages.insert(theirs[-1] + 1, dict(ours))


def _make(settings: TemplateSettings, context: Context) -> Processor:
    del context
    return Template(settings)


KIND = Kind(settings=TemplateSettings, stages=frozenset({"gateway", "worker"}), make=_make)

"""The chat format of a model that sees: where images stand in a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json, Message, Tool
from tokenweir.runtime.engines.mlx.text import MlxText
from tokenweir.runtime.models.tokenizers import chat_template

_PLACES: Final[Mapping[str, str]] = {"phi3_v": "<|image_{number}|>\n"}
"""What stands for an image where the template does not say it, by architecture."""

_PLACE: Final = "<image>\n"


class VisionText(MlxText):
    """As :class:`MlxText`; images are placed by the template, or by the family's custom where it knows none."""

    def __init__(self, directory: Path, architecture: str) -> None:
        super().__init__(directory)
        self._places = (
            None if "image" in (chat_template(directory) or "") else _PLACES.get(architecture, _PLACE)
        )

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Json]) -> str:
        """Return the prompt that the chat template makes. Raises ParameterError where it has none or refuses."""
        if self._places is None:
            return super().render(messages, tools, options)
        number = 0
        plain: list[Message] = []
        for message in messages:
            content = message.content
            if isinstance(content, tuple):
                parts: list[str] = []
                for part in content:
                    if part.get("type") in {"image", "image_url"}:
                        number += 1
                        parts.append(self._places.format(number=number))
                    else:
                        parts.append(str(part.get("text", "")))
                plain.append(msgspec.structs.replace(message, content="".join(parts)))
            else:
                plain.append(message)
        return super().render(plain, tools, options)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of a prompt, its special tokens written out, for the family's own processor.

        Raises:
            ParameterError: a token has no text.
        """
        size = self.tokenizer.get_vocab_size()
        odd = next((token for token in tokens if not 0 <= token < size), None)
        if odd is not None:
            raise ParameterError(
                f"the token {odd} has no text", param="prompt", mend="send messages, or text"
            )
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

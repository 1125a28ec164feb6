"""A model's tokenizer and chat format, from its files, without the ``transformers`` package.

Safe beside the device thread: tokenising and rendering keep no state, and each answer has its own detokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, cast

from tokenizers import AddedToken, Tokenizer

from tokenweir.core.errors import InputError, ParameterError
from tokenweir.core.requests import Json, Message, Tool
from tokenweir.ports.inference import Detokenizer, Markers
from tokenweir.runtime.engines.mlx.detokenizing import detokenizers
from tokenweir.runtime.engines.mlx.fences import ToolCalls, think_fence, tool_calls
from tokenweir.runtime.engines.mlx.template import ChatTemplate
from tokenweir.runtime.models.configuration import read_json
from tokenweir.runtime.models.tokenizers import FILE, chat_template, require_tokenizer, special_tokens

_SETTINGS: Final = "tokenizer_config.json"
_GENERATION: Final = "generation_config.json"
_CONFIG: Final = "config.json"


class _TakesTokens(Protocol):
    def add_tokens(self, tokens: list[AddedToken]) -> int: ...


class MlxText:
    """The tokenizer and chat format in a model directory.

    Raises:
        InputError: a file is missing or is not what it should be; the message names it.
    """

    def __init__(self, directory: Path) -> None:
        require_tokenizer(directory)
        settings = _optional(directory / _SETTINGS)
        self.tokenizer = _read(directory / FILE)
        _add_missing(self.tokenizer, settings)
        vocabulary = self.tokenizer.get_vocab()
        named = {name: text for name, text in special_tokens(directory).items() if text is not None}
        source = chat_template(directory)
        self._template = ChatTemplate(source, named, str(directory)) if source is not None else None
        self._path = directory
        self.tool_calls: ToolCalls | None = tool_calls(source, vocabulary, settings)
        self._markers = Markers(
            think=think_fence(vocabulary), tool=self.tool_calls.fence if self.tool_calls else ("", "")
        )
        added = self.tokenizer.get_added_tokens_decoder().values()
        shown = frozenset(_shown(self._markers, [str(token.content) for token in added]))
        self._detokenizers = detokenizers(self.tokenizer, read_json(directory / FILE), shown)
        self._begin = _begin(settings, named, vocabulary)
        self.stop_tokens = _stop_tokens(directory, named, vocabulary)

    @property
    def has_template(self) -> bool:
        """Whether it can make a prompt of messages."""
        return self._template is not None

    def encode(self, text: str, *, special: bool = True) -> Sequence[int]:
        """Return the token ids of ``text``; ``special`` adds what the model wants at the beginning."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        if special and self._begin is not None:
            wanted, token = self._begin
            if wanted and ids[:1] != [token]:
                return [token, *ids]
            if not wanted and ids[:1] == [token]:
                return ids[1:]
        return ids

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Json]) -> str:
        """Return the prompt that the chat template makes.

        Raises:
            ParameterError: the model has no template, or it refuses the messages.
        """
        if self._template is None:
            raise ParameterError(
                f"the model in {self._path} has no chat template",
                param="messages",
                mend="ask for a completion of a prompt instead",
            )
        return self._template.render(messages, tools, options)

    def detokenizer(self) -> Detokenizer:
        """Return a fresh detokenizer."""
        return self._detokenizers()

    def markers(self) -> Markers:
        """Return the fences of this model's answers."""
        return self._markers


def _read(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise InputError(
            f"{path} is no tokenizer: {error}", mend="copy or download the file again"
        ) from error


def _optional(path: Path) -> dict[str, Json]:
    return read_json(path) if path.is_file() else {}


def _add_missing(tokenizer: Tokenizer, settings: Mapping[str, Json]) -> None:
    """Add the tokens that only the settings name, where they continue the vocabulary."""
    added = settings.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return
    numbered = sorted((int(number), entry) for number, entry in added.items() if number.isdigit())
    for number, entry in numbered:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or tokenizer.token_to_id(content) is not None:
            continue
        if number == tokenizer.get_vocab_size():
            special = isinstance(entry, dict) and entry.get("special") is True
            _add(tokenizer, AddedToken(content, special=special, normalized=False))


def _add(tokenizer: Tokenizer, token: AddedToken) -> None:
    cast("_TakesTokens", tokenizer).add_tokens([token])


def _begin(
    settings: Mapping[str, Json], named: Mapping[str, str], vocabulary: Mapping[str, int]
) -> tuple[bool, int] | None:
    """Return whether a text shall begin with the token for that, and which it is; ``None`` for: as it comes."""
    wanted = settings.get("add_bos_token")
    token = vocabulary.get(named.get("bos_token", ""))
    return (wanted, token) if isinstance(wanted, bool) and token is not None else None


def _stop_tokens(directory: Path, named: Mapping[str, str], vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Return the tokens that end an answer: the generation settings', else the model's, and the tokenizer's."""
    found: set[int] = set()
    for name in (_GENERATION, _CONFIG):
        value = _optional(directory / name).get("eos_token_id")
        numbers = value if isinstance(value, list) else [value]
        found |= {number for number in numbers if isinstance(number, int) and not isinstance(number, bool)}
        if found:
            break
    own = vocabulary.get(named.get("eos_token", ""))
    return frozenset(found | ({own} if own is not None else set()))


def _shown(markers: Markers, added: Sequence[str]) -> set[str]:
    """Return the added tokens that fences are made of: they must not be lost from the text."""
    fences = [fence for fence in (*markers.think, *markers.tool) if fence]
    return {text for text in added if any(text in fence or fence in text for fence in fences)}

"""What a model's tokenizer files say, read as JSON: vocabulary, special tokens, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tokenweir.core.errors import InputError
from tokenweir.core.requests import Json
from tokenweir.runtime.models.configuration import read_json

FILE: Final = "tokenizer.json"
_SETTINGS: Final = "tokenizer_config.json"
_SPECIAL: Final = ("bos_token", "eos_token", "pad_token", "unk_token")
_OLDER: Final = ("tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")


class _Added(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct, frozen=True):
    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _File(msgspec.Struct, frozen=True):
    model: _Model
    added_tokens: tuple[_Added, ...] | None = None


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """Every token's number by its text, and the texts of those that steer rather than say."""

    tokens: dict[str, int]
    special: frozenset[str]


def require_tokenizer(directory: Path) -> None:
    """Check that the model has a tokenizer that can be read without other packages.

    Raises:
        InputError: there is none, or only one of an older format.
    """
    if (directory / FILE).is_file():
        return
    older = [name for name in _OLDER if (directory / name).is_file()]
    if older:
        raise InputError(
            f"{directory} holds {older[0]} but no {FILE}",
            mend=f"convert it: transformers.AutoTokenizer.from_pretrained({str(directory)!r}, use_fast=True)"
            f".save_pretrained({str(directory)!r})",
        )
    raise InputError(f"{directory} holds no {FILE}", mend="copy it from where the model came from")


def read_vocabulary(directory: Path) -> Vocabulary:
    """Return the vocabulary in ``tokenizer.json``.

    Raises:
        InputError: the file is missing or is no tokenizer.
    """
    require_tokenizer(directory)
    path = directory / FILE
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", mend="check the file") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"{path} is no tokenizer: {error}", mend="copy or download the file again"
        ) from error
    vocab = file.model.vocab
    tokens = dict(vocab) if isinstance(vocab, dict) else {text: at for at, (text, _) in enumerate(vocab)}
    added = file.added_tokens or ()
    tokens |= {token.content: token.id for token in added}
    return Vocabulary(tokens=tokens, special=frozenset(token.content for token in added if token.special))


def special_tokens(directory: Path) -> dict[str, str | None]:
    """Return the texts of ``bos_token``, ``eos_token``, ``pad_token`` and ``unk_token``, ``None`` where not named."""
    settings = _settings(directory)
    found: dict[str, str | None] = {}
    for name in _SPECIAL:
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        found[name] = value if isinstance(value, str) else None
    return found


def chat_template(directory: Path) -> str | None:
    """Return the chat template, the one named ``default`` where there are several, or ``None``."""
    for name in ("chat_template.jinja", "chat_template.jinja2"):
        if (directory / name).is_file():
            return (directory / name).read_text(encoding="utf-8", errors="replace")
    value: Json = _settings(directory).get("chat_template")
    if value is None and (directory / "chat_template.json").is_file():
        value = read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(value, list):
        named = {part.get("name"): part.get("template") for part in value if isinstance(part, dict)}
        value = named.get("default", next(iter(named.values()), None))
    return value if isinstance(value, str) and value else None


def _settings(directory: Path) -> Mapping[str, Json]:
    path = directory / _SETTINGS
    return read_json(path) if path.is_file() else {}

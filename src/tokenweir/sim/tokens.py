"""The simulator's own tokens: four-letter words, each one token, so that its counts are right as made."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, cast

from tokenweir.core.errors import ConfigError, MissingExtraError

_WORDS: Final = re.findall(
    r"\w+",
    "lake rain moss fern reed sand silt clay rock flow weir pool ford dale glen peat mist dawn dusk wind "
    "leaf root bark seed corn barn mill gate lock quay boat sail mast rope knot tide wave foam gull coot "
    "newt toad frog hare deer lynx wolf bear crow wren lark swan duck hawk moth bees ants hive nest path",
)
_WIDTH: Final = 5
_ID_WIDTH: Final = 4
_FIRST_ID: Final = 101
CYCLE: Final = 4096
"""Number of words after which the simulator's text repeats; a start is below it."""

_LONG_WORD: Final = 12
_BYTES_PER_TOKEN: Final = 4


def _cycle() -> list[int]:
    state = 1
    order: list[int] = []
    for _ in range(CYCLE):
        # A linear congruential generator (Knuth's MMIX constants): the text is the same on every machine.
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFF_FFFF_FFFF_FFFF
        order.append((state >> 33) % len(_WORDS))
    return order


_ORDER: Final = _cycle()
_TEXT: Final = b"".join(b" " + _WORDS[one].encode() for one in _ORDER)
_IDS: Final = b"".join(b"%d," % (_FIRST_ID + one) for one in _ORDER)
TEXT: Final = _TEXT + _TEXT
"""Two cycles of text; word ``i`` lies at ``TEXT[5 * i : 5 * i + 5]``, its leading space included."""
IDS: Final = _IDS + _IDS


def words(start: int, count: int) -> bytes:
    """Return ``count`` tokens of text from ``start`` on, each a space and four letters: JSON as it stands."""
    if start + count <= 2 * CYCLE:
        return TEXT[_WIDTH * start : _WIDTH * (start + count)]
    return (_TEXT * (count // CYCLE + 2))[_WIDTH * start : _WIDTH * (start + count)]


def word_ids(start: int, count: int) -> bytes:
    """Return the ids of the same tokens, separated by commas."""
    if start + count <= 2 * CYCLE:
        return IDS[_ID_WIDTH * start : _ID_WIDTH * (start + count) - 1]
    return (_IDS * (count // CYCLE + 2))[_ID_WIDTH * start : _ID_WIDTH * (start + count) - 1]


def estimate(text: str) -> int:
    """Return the tokens of ``text``: one per word, or per four bytes where words average over 12 letters."""
    count = len(text.split())
    if len(text) > _LONG_WORD * count:
        return -(-len(text.encode()) // _BYTES_PER_TOKEN)
    return count


class _Encoding(Protocol):
    @property
    def ids(self) -> Sequence[int]: ...


class _Tokenizer(Protocol):
    def encode(self, sequence: str, *, add_special_tokens: bool) -> _Encoding: ...


def counter(path: str | None) -> Callable[[str], int]:
    """Return what counts input tokens: the tokenizer in ``path`` (``tokenizer.json``), else :func:`estimate`.

    Raises:
        ConfigError: the file cannot be read.
        MissingExtraError: the ``tokenizers`` package is not installed.
    """
    if path is None:
        return estimate
    if not Path(path).is_file():
        raise ConfigError(f"no tokenizer file at {path!r}", mend="name a tokenizer.json")
    try:
        module = importlib.import_module("tokenizers")
    except ImportError:
        raise MissingExtraError(
            "a tokenizer file needs the package 'tokenizers'", mend="pip install 'tokenweir[bench]'"
        ) from None
    tokenizer = cast("_Tokenizer", module.Tokenizer.from_file(path))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count

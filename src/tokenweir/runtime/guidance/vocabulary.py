"""A model's tokens as guidance needs them: the bytes of each, and which of them end an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec
from llguidance import LLTokenizer, TokenizerWrapper

from tokenweir.core.errors import GuidanceError, InputError
from tokenweir.core.requests import Json

_BITS: Final = 32


class Vocabulary:
    """The tokens of one model, read when they are first needed: a large file takes about a second.

    ``width`` is the width of the logits, at least the number of tokens; ``words`` how many 32-bit words a mask has.
    """

    def __init__(self, make: Callable[[], LLTokenizer], *, width: int, ends: Collection[int]) -> None:
        if not ends:
            raise GuidanceError(
                "the model states no token that ends an answer", mend="state eos_token_id in its config.json"
            )
        self.width = width
        self.ends = tuple(sorted(ends))
        self._make = make
        self._made: LLTokenizer | None = None
        self._lock = threading.Lock()

    @property
    def words(self) -> int:
        """How many 32-bit words a mask has."""
        return -(-self.width // _BITS)

    def tokenizer(self) -> LLTokenizer:
        """Return the tokens as llguidance wants them. Raises GuidanceError for a tokenizer that it cannot read."""
        with self._lock:
            if self._made is None:
                try:
                    self._made = self._make()
                except ValueError as error:
                    raise GuidanceError(
                        f"this model cannot be guided: {error}",
                        mend="leave guidance out, or take another model",
                    ) from error
            return self._made


def file_vocabulary(path: Path, *, width: int, ends: Collection[int]) -> Vocabulary:
    """Return the vocabulary of a ``tokenizer.json``; ``ends`` are the tokens that end an answer.

    Raises:
        GuidanceError: ``ends`` is empty.
    """

    def make() -> LLTokenizer:
        try:
            text = path.read_text(encoding="utf-8")
            fields = msgspec.json.decode(text, type=dict[str, Json])
        except (OSError, UnicodeError, msgspec.DecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}", mend="check the file") from error
        # Files may ask for the padding or truncation of training batches, which has no place here.
        fields["padding"] = fields["truncation"] = None
        return LLTokenizer(msgspec.json.encode(fields).decode(), n_vocab=width, eos_token=sorted(ends))

    return Vocabulary(make, width=width, ends=ends)


def piece_vocabulary(
    pieces: Sequence[bytes], *, special: Collection[int], ends: Collection[int], width: int | None = None
) -> Vocabulary:
    """Return the vocabulary whose token ``i`` writes ``pieces[i]``; ``special`` ones write nothing.

    Raises:
        GuidanceError: ``ends`` is empty.
    """
    wide = max(width or 0, len(pieces))

    def make() -> LLTokenizer:
        return LLTokenizer(
            TokenizerWrapper(_Pieces(pieces, special, min(ends))), n_vocab=wide, eos_token=sorted(ends)
        )

    return Vocabulary(make, width=wide, ends=ends)


class _Pieces:
    """The shape in which llguidance takes tokens that come from no file."""

    def __init__(self, pieces: Sequence[bytes], special: Collection[int], end: int) -> None:
        self.eos_token_id = end
        self.bos_token_id = None
        self.tokens = list(pieces)
        self.special_token_ids = sorted(special)
        self._numbers = {piece: at for at, piece in enumerate(pieces) if at not in set(special)}
        self._longest = max(map(len, pieces))

    def __call__(self, text: bytes) -> list[int]:
        """Return tokens that write ``text``, the longest first at each place; what none writes is left out."""
        found: list[int] = []
        place = 0
        while place < len(text):
            for length in range(min(self._longest, len(text) - place), 0, -1):
                number = self._numbers.get(text[place : place + length])
                if number is not None:
                    found.append(number)
                    place += length
                    break
            else:
                place += 1
        return found

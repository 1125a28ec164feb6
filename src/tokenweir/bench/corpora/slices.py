"""Texts of exact token counts, cut out of one long row of tokens.

A slice of the row is turned back into text and tokenised again; where its borders merged or split a token,
the slice is lengthened or shortened until the count is right. Every text that leaves here was counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.backends.tokenizer_file import FileTokenizer
from tokenweir.bench.tokenizers import count_tokens
from tokenweir.core.errors import SpecError
from tokenweir.ports.tokenizer import Tokenizer

_ROUNDS: Final = 12
_BATCH_TOKENS: Final = 250_000
_FILLERS: Final = ("a", "the", "of", "water", "river", "and", "I", "x", "1")

Ids: TypeAlias = npt.NDArray[np.int64]


class Ring(msgspec.Struct, frozen=True):
    """Token ids that continue at their start after their end, and where in them a text may begin."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def cut(self, start: int, length: int) -> list[int]:
        """Return ``length`` ids from ``start`` on."""
        if start + length <= self.ids.size:
            return self.ids[start : start + length].tolist()
        return self.ids[np.arange(start, start + length) % self.ids.size].tolist()


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """One text to make: where it begins in the ring, and its length in tokens, that of its tag included."""

    start: int
    length: int
    tag: str = ""


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Return the ids of every text as it stands after a space, so that texts join as written text does."""
    spaced = [f" {text}" for text in texts]
    encoded = (
        tokenizer.encode_batch(spaced)
        if isinstance(tokenizer, FileTokenizer)
        else map(tokenizer.encode, spaced)
    )
    pieces: list[Ids] = [np.asarray(ids, dtype=np.int64) for ids in encoded]
    if not any(piece.size for piece in pieces):
        raise SpecError(
            "the tokenizer finds no token in the corpus",
            mend="give the tokenizer of the model that is measured",
        )
    return pieces


def make_ring(pieces: Sequence[Ids]) -> Ring:
    """Lay the pieces out one after another; a text may begin where a piece does."""
    sizes = np.array([piece.size for piece in pieces], dtype=np.int64)
    return Ring(np.concatenate(pieces), np.concatenate([[0], np.cumsum(sizes)[:-1]]) % sizes.sum())


def exact_cuts(tokenizer: Tokenizer, ring: Ring, cuts: Sequence[Cut]) -> list[str]:
    """Return one text per cut that has its length in tokens behind its tag, with no white space around it.

    The tag is not part of what is returned. Raises SpecError for a length that the tokenizer cannot make, or
    that leaves nothing behind its tag.
    """
    # In batches, because a list of ids takes ten times the memory of its text.
    size = max(1, _BATCH_TOKENS // max((cut.length for cut in cuts), default=1))
    batches = (cuts[first : first + size] for first in range(0, len(cuts), size))
    return [text for batch in batches for text in _exact(tokenizer, ring, batch)]


def _exact(tokenizer: Tokenizer, ring: Ring, cuts: Sequence[Cut]) -> list[str]:
    texts = [""] * len(cuts)
    tags: list[int] = count_tokens(tokenizer, [cut.tag for cut in cuts]).tolist()
    takes = [cut.length - tag for cut, tag in zip(cuts, tags, strict=True)]
    for cut, take in zip(cuts, takes, strict=True):
        if take < 1:
            raise SpecError(
                f"a prompt of {cut.length} tokens has no room for a unique beginning",
                mend="ask for longer prompts or drop --unique-prompts",
            )
    wrong = list(range(len(cuts)))
    for _ in range(_ROUNDS):
        made = _decode(tokenizer, [ring.cut(cuts[index].start, takes[index]) for index in wrong])
        for index, text in zip(wrong, made, strict=True):
            texts[index] = text.strip()
        counts = count_tokens(tokenizer, [cuts[index].tag + texts[index] for index in wrong]).tolist()
        missing = {
            index: cuts[index].length - count
            for index, count in zip(wrong, counts, strict=True)
            if count != cuts[index].length
        }
        if not missing:
            return texts
        for index, by in missing.items():
            takes[index] = max(1, takes[index] + by)
        wrong = list(missing)
    for index in wrong:
        texts[index] = _filled(tokenizer, cuts[index].tag, texts[index], cuts[index].length)
    return texts


def _decode(tokenizer: Tokenizer, slices: Sequence[Sequence[int]]) -> list[str]:
    if isinstance(tokenizer, FileTokenizer):
        return tokenizer.decode_batch(slices)
    return [tokenizer.decode(ids) for ids in slices]


def _filled(tokenizer: Tokenizer, tag: str, text: str, length: int) -> str:
    """Reach a length that slicing steps over: drop last words, then add words of one token."""
    words = text.split(" ")
    for keep in range(len(words), -1, -1):
        base = " ".join(words[:keep])
        missing = length - len(tokenizer.encode(tag + base))
        if missing == 0 and keep:
            return base
        for filler in _FILLERS if missing > 0 else ():
            tail = [filler] * missing
            made = " ".join([*words[:keep], *tail])
            if len(tokenizer.encode(tag + made)) == length:
                return made
    raise SpecError(
        f"the tokenizer cannot make a prompt of exactly {length} tokens from the corpus",
        mend="ask for another length",
    )

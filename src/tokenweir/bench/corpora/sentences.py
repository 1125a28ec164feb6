"""Prompts of exact token counts, put together from whole sentences.

A tokenizer splits text at white space before anything else, so the tokens of sentences add up: only the last
sentence of a prompt has to be cut, and there are few different ways to cut it. Whether they add up under
this tokenizer is checked by counting prompts as they are: all up to a bound, else some drawn by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.corpora.slices import Cut, encode_texts, exact_cuts, make_ring
from tokenweir.bench.tokenizers import count_tokens
from tokenweir.core.seeds import generator
from tokenweir.ports.tokenizer import Tokenizer

CHECKED_TOKENS: Final = 500_000
"""How many tokens of prompts are counted again before they are used."""

_TAIL_ROUNDS: Final = 4


class Prompts(msgspec.Struct, frozen=True):
    """Where each prompt begins in the row of sentences, how long it must be, and its tag."""

    starts: Sequence[int]
    lengths: Sequence[int]
    tags: Sequence[str]


class Sentences:
    """Sentences in an order that may use each many times, and what they come to under one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], order: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self._order = order
        self._pieces = encode_texts(tokenizer, texts)
        self._first: list[int] = count_tokens(tokenizer, texts).tolist()
        self._tails: dict[tuple[int, int, bool], str | None] = {}

    def starts(self, lengths: npt.NDArray[np.int32]) -> list[int]:
        """Return where in the row each prompt begins so that each takes new sentences."""
        sizes = np.array([piece.size for piece in self._pieces], dtype=np.int64)[list(self._order)]
        begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]) % max(int(sizes.sum()), 1)
        found: list[int] = (np.searchsorted(np.cumsum(sizes) - sizes, begins) % len(self._order)).tolist()
        return found

    def prompts(self, wanted: Prompts, *, seed: int) -> list[str]:
        """Return the prompts. Raises SpecError for a length that the tokenizer cannot make."""
        tag_tokens: list[int] = count_tokens(self._tokenizer, [tag.rstrip() for tag in wanted.tags]).tolist()
        made = [
            self._join(start, length - taken, tagged=taken > 0)
            for start, length, taken in zip(wanted.starts, wanted.lengths, tag_tokens, strict=True)
        ]
        wrong = {index for index, text in enumerate(made) if text is None}
        texts = [text or "" for text in made]
        checked = self._checked(wanted.lengths, seed=seed)
        off = set(self._miscounted(texts, wanted, checked))
        if off - wrong and len(checked) < len(texts):
            # The sentences do not add up after all, so no prompt can be trusted uncounted.
            off = set(self._miscounted(texts, wanted, range(len(texts))))
        self._mend(texts, wanted, sorted(wrong | off))
        return texts

    def _join(self, start: int, length: int, *, tagged: bool) -> str | None:
        """Return sentences of ``length`` tokens from ``start`` on, or ``None``: its last cannot be cut."""
        parts: list[str] = []
        missing, at = length, start
        while missing > 0:
            index = self._order[at]
            first = not parts and not tagged
            whole = self._first[index] if first else self._pieces[index].size
            part = self._texts[index] if whole <= missing else self._tail(index, missing, first=first)
            if part is None:
                return None
            parts.append(part)
            missing -= whole
            at = (at + 1) % len(self._order)
        return " ".join(parts) if parts else None

    def _tail(self, index: int, length: int, *, first: bool) -> str | None:
        key = (index, length, first)
        if key not in self._tails:
            self._tails[key] = self._cut(index, length, first=first)
        return self._tails[key]

    def _cut(self, index: int, length: int, *, first: bool) -> str | None:
        """Return the beginning of a sentence that has ``length`` tokens where it stands, if there is one."""
        ids: list[int] = self._pieces[index].tolist()
        take = length
        for _ in range(_TAIL_ROUNDS):
            text = self._tokenizer.decode(ids[:take]).strip()
            by = length - len(self._tokenizer.encode(text if first else f" {text}"))
            if by == 0 and text:
                return text
            take = max(1, take + by)
        return None

    def _checked(self, lengths: Sequence[int], *, seed: int) -> Sequence[int]:
        order: list[int] = generator(seed, "checks").permutation(len(lengths)).tolist()
        totals = np.cumsum([lengths[index] for index in order])
        return sorted(order[: int(np.searchsorted(totals, CHECKED_TOKENS, "right"))])

    def _miscounted(self, texts: Sequence[str], wanted: Prompts, indices: Sequence[int]) -> Iterator[int]:
        counts = count_tokens(self._tokenizer, [wanted.tags[index] + texts[index] for index in indices])
        for index, count in zip(indices, counts.tolist(), strict=True):
            if count != wanted.lengths[index]:
                yield index

    def _mend(self, texts: list[str], wanted: Prompts, wrong: Sequence[int]) -> None:
        """Cut the prompts that sentences could not make out of the row of their tokens."""
        if not wrong:
            return
        ring = make_ring([self._pieces[index] for index in self._order])
        cuts = [
            Cut(
                start=int(ring.starts[wanted.starts[index]]),
                length=wanted.lengths[index],
                tag=wanted.tags[index],
            )
            for index in wrong
        ]
        for index, text in zip(wrong, exact_cuts(self._tokenizer, ring, cuts), strict=True):
            texts[index] = text

"""Prompts of exact token counts, cut from text.

The text is tokenised once and laid out as one long ring. A prompt is a slice of it, turned back into text and
tokenised again; where its borders merged or split a token, the slice is lengthened or shortened until the count
is right. Every prompt that leaves here was counted as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.corpora.corpus import Corpus
from tokenweir.bench.corpora.shipped import shipped_prose
from tokenweir.bench.tokenizers import FileTokenizer, count_tokens
from tokenweir.core.corpus import Sample
from tokenweir.core.errors import SpecError
from tokenweir.core.scenario import Lengths
from tokenweir.core.seeds import generator
from tokenweir.ports.tokenizer import Tokenizer

_ROUNDS: Final = 12
_MAX_RING: Final = 4_000_000
_SLACK: Final = 4096
_SENTENCE: Final = re.compile(r"(?<=[.?!])\s+")
_FILLERS: Final = ("a", "the", "of", "water", "river", "and", "I", "x", "1")


class Ring(msgspec.Struct, frozen=True):
    """Token ids that continue at their start after their end, and where in them a text may begin."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def cut(self, start: int, length: int) -> list[int]:
        """Return ``length`` ids from ``start`` on."""
        if start + length <= self.ids.size:
            return self.ids[start : start + length].tolist()
        return self.ids[np.arange(start, start + length) % self.ids.size].tolist()


def synthetic_corpus(
    tokenizer: Tokenizer, lengths: Lengths, *, seed: int, tags: Sequence[str] = ()
) -> Corpus:
    """Return a corpus of the given lengths in tokens, cut from the shipped prose in an order drawn from ``seed``.

    Every prompt takes the sentences after those of the prompt before it; the prose comes in a new order each time
    it is used up. ``tags`` are put before the prompts and counted with them. Raises SpecError where a length
    cannot be made.
    """
    pieces = _encode(tokenizer, _SENTENCE.split(shipped_prose().strip()))
    rng = generator(seed, "sentences")
    needed = min(int(lengths.input_tokens.sum()), _MAX_RING) + _SLACK
    rounds = -(-needed // sum(piece.size for piece in pieces))
    order = np.concatenate([rng.permutation(len(pieces)) for _ in range(rounds)])
    ring = _ring([pieces[index] for index in order.tolist()])
    begins = np.concatenate([[0], np.cumsum(lengths.input_tokens, dtype=np.int64)[:-1]]) % ring.ids.size
    starts = ring.starts[np.searchsorted(ring.starts, begins) % ring.starts.size]
    return _corpus(tokenizer, "synthetic", ring, starts, lengths, tags)


def cut_corpus(
    tokenizer: Tokenizer, corpus: Corpus, lengths: Lengths, *, seed: int, tags: Sequence[str] = ()
) -> Corpus:
    """Return samples of ``corpus`` brought to the given lengths in tokens.

    A sample that is too long is cut; one that is too short goes on with the text of the samples after it. Where
    there are fewer lengths than samples, those used are drawn from ``seed``; where more, samples are used again.
    """
    count, have = lengths.input_tokens.size, len(corpus)
    chosen = np.sort(generator(seed, "samples").permutation(have)[:count])
    texts = [corpus.samples[index].text for index in chosen]
    ring = _ring(_encode(tokenizer, texts))
    starts = ring.starts[np.arange(count) % chosen.size]
    return _corpus(tokenizer, corpus.name, ring, starts, lengths, tags)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    """Return the ids of every text as it stands after a space, so that texts join as written text does."""
    spaced = [f" {text}" for text in texts]
    encoded = (
        tokenizer.encode_batch(spaced)
        if isinstance(tokenizer, FileTokenizer)
        else map(tokenizer.encode, spaced)
    )
    pieces = [np.asarray(ids, dtype=np.int64) for ids in encoded]
    if not any(piece.size for piece in pieces):
        message = "the tokenizer finds no token in the corpus"
        raise SpecError(message, mend="give the tokenizer of the model that is measured")
    return pieces


def _ring(pieces: Sequence[npt.NDArray[np.int64]]) -> Ring:
    sizes = np.array([piece.size for piece in pieces], dtype=np.int64)
    return Ring(np.concatenate(pieces), np.concatenate([[0], np.cumsum(sizes)[:-1]]) % sizes.sum())


def _corpus(  # noqa: PLR0913 - one private seam between the two public ones
    tokenizer: Tokenizer,
    name: str,
    ring: Ring,
    starts: npt.NDArray[np.int64],
    lengths: Lengths,
    tags: Sequence[str],
) -> Corpus:
    texts = exact_texts(tokenizer, ring, starts, lengths.input_tokens, tags)
    outputs: Sequence[int | None] = lengths.output_tokens.tolist() or [None] * len(texts)
    samples = tuple(
        Sample(id=str(index), prompt=text, max_tokens=output if output and output > 0 else None)
        for index, (text, output) in enumerate(zip(texts, outputs, strict=True))
    )
    return Corpus(name, samples)


def exact_texts(
    tokenizer: Tokenizer,
    ring: Ring,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    tags: Sequence[str] = (),
) -> list[str]:
    """Return one text per start that has exactly its length in tokens, tag included, and no white space around it.

    Raises SpecError for a length that the tokenizer cannot make, or that is too short for its tag.
    """
    prefixes = tags or [""] * lengths.size
    takes = lengths.astype(np.int64)
    if tags:
        takes = takes - count_tokens(tokenizer, tags)
        if takes.size and takes.min() < 1:
            message = f"a prompt of {lengths[int(takes.argmin())]} tokens has no room for a unique beginning"
            raise SpecError(message, mend="ask for longer prompts or drop --unique-prompts")
    texts: list[str] = [""] * lengths.size
    wanted = list(range(lengths.size))
    for _ in range(_ROUNDS):
        slices = [ring.cut(int(starts[index]), int(takes[index])) for index in wanted]
        made = [
            prefixes[index] + text.strip()
            for index, text in zip(wanted, _decode(tokenizer, slices), strict=True)
        ]
        short = lengths[wanted] - count_tokens(tokenizer, made)
        for index, text in zip(wanted, made, strict=True):
            texts[index] = text
        wanted = [index for index, by in zip(wanted, short.tolist(), strict=True) if by]
        if not wanted:
            return texts
        takes[wanted] = np.maximum(takes[wanted] + short[short != 0], 1)
    for index in wanted:
        texts[index] = _filled(tokenizer, prefixes[index], texts[index], int(lengths[index]))
    return texts


def _decode(tokenizer: Tokenizer, slices: Sequence[Sequence[int]]) -> list[str]:
    if isinstance(tokenizer, FileTokenizer):
        return tokenizer.decode_batch(slices)
    return [tokenizer.decode(ids) for ids in slices]


def _filled(tokenizer: Tokenizer, prefix: str, text: str, length: int) -> str:
    """Reach a length that slicing steps over: drop last words, then add words of one token."""
    words = text.removeprefix(prefix).split(" ")
    for keep in range(len(words), -1, -1):
        base = prefix + " ".join(words[:keep])
        missing = length - len(tokenizer.encode(base))
        if missing == 0 and keep:
            return base
        for filler in _FILLERS if missing > 0 else ():
            tail = [filler] * missing
            made = base + (" " if keep else "") + " ".join(tail)
            if len(tokenizer.encode(made)) == length:
                return made
    message = f"the tokenizer cannot make a prompt of exactly {length} tokens from the corpus"
    raise SpecError(message, mend="ask for another length")

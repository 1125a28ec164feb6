"""Prompts of exact token counts, cut from text.

The text is tokenised once and laid out as one long ring. A prompt is a slice of it, turned back into text and
tokenised again; where its borders merged or split a token, the slice is lengthened or shortened until the
count is right. Every prompt that leaves here was counted as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

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
_BATCH_TOKENS: Final = 250_000
_SENTENCE: Final = re.compile(r"(?<=[.?!])\s+")
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
    """One text to make: where it begins in the ring, how many ids to try, its length behind its tag."""

    start: int
    take: int
    length: int
    tag: str


def synthetic_corpus(
    tokenizer: Tokenizer, lengths: Lengths, *, seed: int, tags: Sequence[str] = ()
) -> Corpus:
    """Return a corpus of the given lengths in tokens, cut from the shipped prose as ``seed`` shuffles it.

    Every prompt takes the sentences after those of the prompt before it; the prose comes in a new order each
    time it is used up. ``tags`` will stand before the prompts and are counted with them. Raises SpecError
    where a length cannot be made.
    """
    pieces = _encode(tokenizer, _SENTENCE.split(shipped_prose().strip()))
    rng = generator(seed, "sentences")
    needed = min(int(lengths.input_tokens.sum()), _MAX_RING) + _SLACK
    rounds = -(-needed // sum(piece.size for piece in pieces))
    order: list[int] = np.concatenate([rng.permutation(len(pieces)) for _ in range(rounds)]).tolist()
    ring = _ring([pieces[index] for index in order])
    begins = np.concatenate([[0], np.cumsum(lengths.input_tokens, dtype=np.int64)[:-1]]) % ring.ids.size
    starts = ring.starts[np.searchsorted(ring.starts, begins) % ring.starts.size]
    return _corpus(tokenizer, "synthetic", ring, starts, lengths, tags)


def cut_corpus(
    tokenizer: Tokenizer, corpus: Corpus, lengths: Lengths, *, seed: int, tags: Sequence[str] = ()
) -> Corpus:
    """Return samples of ``corpus`` brought to the given lengths in tokens.

    A sample that is too long is cut; one that is too short goes on with the text of the samples after it.
    Where there are fewer lengths than samples, those used are drawn from ``seed``; where more, samples are
    used again.
    """
    count, have = lengths.input_tokens.size, len(corpus)
    chosen: list[int] = np.sort(generator(seed, "samples").permutation(have)[:count]).tolist()
    ring = _ring(_encode(tokenizer, [corpus.samples[index].text for index in chosen]))
    starts = ring.starts[np.arange(count) % len(chosen)]
    return _corpus(tokenizer, corpus.name, ring, starts, lengths, tags)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
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


def _ring(pieces: Sequence[Ids]) -> Ring:
    sizes = np.array([piece.size for piece in pieces], dtype=np.int64)
    return Ring(np.concatenate(pieces), np.concatenate([[0], np.cumsum(sizes)[:-1]]) % sizes.sum())


def _corpus(
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
    return Corpus(name, samples, input_tokens=lengths.input_tokens)


def exact_texts(
    tokenizer: Tokenizer,
    ring: Ring,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    tags: Sequence[str] = (),
) -> list[str]:
    """Return one text per start that has exactly its length in tokens, and no white space around it.

    With ``tags`` it has that length behind its tag, which is not part of what is returned. Raises SpecError
    for a length that the tokenizer cannot make, or that is too short for its tag.
    """
    takes = lengths.astype(np.int64)
    if tags:
        takes -= count_tokens(tokenizer, tags)
        if takes.size and takes.min() < 1:
            raise SpecError(
                f"a prompt of {lengths[int(takes.argmin())]} tokens has no room for a unique beginning",
                mend="ask for longer prompts or drop --unique-prompts",
            )
    cuts = [
        Cut(start=start, take=take, length=length, tag=tag)
        for start, take, length, tag in zip(
            starts.tolist(), takes.tolist(), lengths.tolist(), tags or [""] * lengths.size, strict=True
        )
    ]
    # In batches, because a list of ids takes ten times the memory of its text.
    size = max(1, _BATCH_TOKENS // max(1, int(lengths.max(initial=1))))
    batches = (cuts[first : first + size] for first in range(0, len(cuts), size))
    return [text for batch in batches for text in _exact(tokenizer, ring, batch)]


def _exact(tokenizer: Tokenizer, ring: Ring, cuts: Sequence[Cut]) -> list[str]:
    texts = [""] * len(cuts)
    takes = [cut.take for cut in cuts]
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

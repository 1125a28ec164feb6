"""Corpora of given lengths: made of the shipped prose, or cut from another corpus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from tokenweir.bench.corpora.corpus import Corpus
from tokenweir.bench.corpora.sentences import Prompts, Sentences
from tokenweir.bench.corpora.shipped import shipped_prose
from tokenweir.bench.corpora.slices import Cut, encode_texts, exact_cuts, make_ring
from tokenweir.core.corpus import Sample
from tokenweir.core.scenario import Lengths
from tokenweir.core.seeds import generator
from tokenweir.ports.tokenizer import Tokenizer

_SENTENCE: Final = re.compile(r"(?<=[.?!])\s+")
_SHORT_SENTENCE: Final = 12
"""Fewer tokens than a sentence has on average, so that the prose is shuffled often enough for all prompts."""


def synthetic_corpus(
    tokenizer: Tokenizer, lengths: Lengths, *, seed: int, tags: Sequence[str] = ()
) -> Corpus:
    """Return a corpus of the given lengths in tokens, made of the shipped prose as ``seed`` shuffles it.

    Every prompt takes the sentences after those of the prompt before it; the prose comes in a new order each
    time it is used up. ``tags`` will stand before the prompts and are counted with them. Raises SpecError
    where a length cannot be made.
    """
    texts = _SENTENCE.split(shipped_prose().strip())
    rng = generator(seed, "sentences")
    rounds = int(lengths.input_tokens.sum(dtype=np.int64)) // (len(texts) * _SHORT_SENTENCE) + 1
    order: list[int] = np.concatenate([rng.permutation(len(texts)) for _ in range(rounds)]).tolist()
    sentences = Sentences(tokenizer, texts, order)
    wanted = Prompts(
        sentences.starts(lengths.input_tokens),
        lengths.input_tokens.tolist(),
        tags or [""] * lengths.input_tokens.size,
    )
    return _corpus("synthetic", sentences.prompts(wanted, seed=seed), lengths)


def cut_corpus(
    tokenizer: Tokenizer, corpus: Corpus, lengths: Lengths, *, seed: int, tags: Sequence[str] = ()
) -> Corpus:
    """Return samples of ``corpus`` brought to the given lengths in tokens.

    A sample that is too long is cut; one that is too short goes on with the text of the samples after it.
    Where there are fewer lengths than samples, those used are drawn from ``seed``; where more, samples are
    used again. ``tags`` as for :func:`synthetic_corpus`. Raises SpecError where a length cannot be made.
    """
    count, have = lengths.input_tokens.size, len(corpus)
    chosen: list[int] = np.sort(generator(seed, "samples").permutation(have)[:count]).tolist()
    ring = make_ring(encode_texts(tokenizer, [corpus.samples[index].text for index in chosen]))
    starts: list[int] = ring.starts[np.arange(count) % len(chosen)].tolist()
    cuts = [
        Cut(start=start, length=length, tag=tag)
        for start, length, tag in zip(
            starts, lengths.input_tokens.tolist(), tags or [""] * count, strict=True
        )
    ]
    return _corpus(corpus.name, exact_cuts(tokenizer, ring, cuts), lengths)


def _corpus(name: str, texts: Sequence[str], lengths: Lengths) -> Corpus:
    outputs: Sequence[int | None] = lengths.output_tokens.tolist() or [None] * len(texts)
    samples = tuple(
        Sample(id=str(index), prompt=text, max_tokens=output if output and output > 0 else None)
        for index, (text, output) in enumerate(zip(texts, outputs, strict=True))
    )
    return Corpus(name, samples, input_tokens=lengths.input_tokens)

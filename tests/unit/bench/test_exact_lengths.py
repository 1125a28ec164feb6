from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories.tokenizers import Family, write_tokenizer

from tokenweir.backends.tokenizer_file import FileTokenizer
from tokenweir.bench.corpora import Corpus, cut_corpus, load_corpus, synthetic_corpus
from tokenweir.bench.corpora.slices import Cut, encode_texts, exact_cuts, make_ring
from tokenweir.bench.tags import Tagger
from tokenweir.bench.tokenizers import EstimateTokenizer, count_tokens
from tokenweir.core.corpus import Sample
from tokenweir.core.errors import SpecError
from tokenweir.core.scenario import Embedding, Fixed, Lengths, Uniform, draw_lengths
from tokenweir.ports.fakes import WordTokenizer
from tokenweir.ports.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["bpe", "unigram", "wordpiece", "estimate"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    family: Family | str = request.param
    match family:
        case "bpe" | "unigram" | "wordpiece":
            return FileTokenizer(write_tokenizer(tmp_path_factory.mktemp(family), family))
        case _:
            return EstimateTokenizer()


def _lengths(*tokens: int) -> Lengths:
    return Lengths(np.array(tokens, dtype=np.int32), np.empty(0, dtype=np.int32))


def _prompts(corpus: Corpus) -> list[str]:
    return [sample.prompt or "" for sample in corpus.samples]


def test_synthetic_prompts_have_exactly_their_lengths(tokenizer: Tokenizer) -> None:
    lengths = draw_lengths(Uniform(1, 700, 5, 9), 60, seed=3)
    corpus = synthetic_corpus(tokenizer, lengths, seed=11)
    assert count_tokens(tokenizer, _prompts(corpus)).tolist() == lengths.input_tokens.tolist()
    assert [sample.max_tokens for sample in corpus.samples] == lengths.output_tokens.tolist()
    assert all(prompt == prompt.strip() for prompt in _prompts(corpus))


def test_many_checked_by_chance_are_all_exact(tokenizer: Tokenizer) -> None:
    lengths = draw_lengths(Fixed(1000, 9), 700 if tokenizer.exact else 20, seed=3)
    corpus = synthetic_corpus(tokenizer, lengths, seed=11)
    assert set(count_tokens(tokenizer, _prompts(corpus)).tolist()) == {1000}
    assert len(set(_prompts(corpus))) == len(corpus)


def test_tags_are_counted_and_make_every_request_unique(tokenizer: Tokenizer) -> None:
    tagger = Tagger(tokenizer, seed=5)
    tags = [tagger.tag(0, index, 0) for index in range(40)]
    corpus = synthetic_corpus(tokenizer, draw_lengths(Fixed(120, 9), 40, seed=3), seed=11, tags=tags)
    for load, repeat in ((0, 0), (0, 1), (3, 0)):
        asked = [tagger.tag(load, index, repeat) + prompt for index, prompt in enumerate(_prompts(corpus))]
        assert set(count_tokens(tokenizer, asked).tolist()) == {120}
    every = {
        tagger.tag(load, index, repeat) for load in range(3) for index in range(40) for repeat in range(3)
    }
    assert len(every) == 3 * 40 * 3


def test_same_seed_same_corpus(tokenizer: Tokenizer) -> None:
    lengths = draw_lengths(Fixed(30, 9), 10, seed=3)
    first = synthetic_corpus(tokenizer, lengths, seed=11)
    assert first.hash == synthetic_corpus(tokenizer, lengths, seed=11).hash
    assert first.hash != synthetic_corpus(tokenizer, lengths, seed=12).hash


def test_text_is_cut_or_continued_to_its_length(tokenizer: Tokenizer) -> None:
    source = load_corpus("weir-mix")
    lengths = draw_lengths(Uniform(5, 200, 5, 9), 150, seed=3)
    corpus = cut_corpus(tokenizer, source, lengths, seed=1)
    assert corpus.name == "weir-mix"
    assert count_tokens(tokenizer, _prompts(corpus)).tolist() == lengths.input_tokens.tolist()
    assert corpus.input_tokens is not None
    assert corpus.input_tokens.tolist() == lengths.input_tokens.tolist()


def test_fewer_lengths_than_samples_use_some_of_them(tokenizer: Tokenizer) -> None:
    source = Corpus(
        "c", tuple(Sample(id=str(index), prompt=f"sample{index} and more words") for index in range(50))
    )
    begins = [prompt[:7] for prompt in _prompts(cut_corpus(tokenizer, source, _lengths(*[9] * 5), seed=1))]
    assert begins == sorted(begins, key=lambda begin: int("".join(filter(str.isdigit, begin)) or 0))
    assert len(begins) == 5


def test_text_beyond_ascii_is_exact_too(tokenizer: Tokenizer) -> None:
    source = Corpus(
        "c",
        (
            Sample(id="0", prompt="Größe, naïve café; 川の水は流れる。 " * 4),
            Sample(id="1", prompt="🙂 river ok"),
        ),
    )
    corpus = cut_corpus(tokenizer, source, _lengths(7, 23, 40), seed=1)
    assert count_tokens(tokenizer, _prompts(corpus)).tolist() == [7, 23, 40]


def test_embeddings_have_no_output_length(tokenizer: Tokenizer) -> None:
    corpus = synthetic_corpus(tokenizer, draw_lengths(Embedding(12), 3, seed=1), seed=1)
    assert [sample.max_tokens for sample in corpus.samples] == [None] * 3


def test_no_room_behind_the_tag_is_an_error() -> None:
    tokenizer = EstimateTokenizer()
    tags = [Tagger(tokenizer, seed=5).tag(0, 0, 0)]
    with pytest.raises(SpecError, match="no room for a unique beginning"):
        synthetic_corpus(tokenizer, _lengths(2), seed=1, tags=tags)


def test_a_length_that_cannot_be_made_is_an_error() -> None:
    tokenizer = WordTokenizer(["a", "the", "of", "water", "river", "and", "I", "x", "1"])
    ring = make_ring(encode_texts(tokenizer, ["water of the river"]))
    assert exact_cuts(tokenizer, ring, [Cut(start=0, length=6)]) == ["water of the river water of"]
    with pytest.raises(SpecError, match="finds no token"):
        encode_texts(tokenizer, [" "])


class _PairTokenizer:
    """Counts two for every word, so that no odd length exists."""

    @property
    def exact(self) -> bool:
        return True

    @property
    def hash(self) -> str | None:
        return None

    def encode(self, text: str) -> Sequence[int]:
        return [index for _ in text.split() for index in (0, 1)]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join("w" for _ in range((len(ids) + 1) // 2))


@given(st.integers(1, 40))
def test_odd_lengths_of_a_tokenizer_of_pairs_are_refused(length: int) -> None:
    tokenizer = _PairTokenizer()
    ring = make_ring(encode_texts(tokenizer, ["w w w"]))
    if length % 2:
        with pytest.raises(SpecError, match=f"exactly {length} tokens"):
            exact_cuts(tokenizer, ring, [Cut(start=0, length=length)])
    else:
        (text,) = exact_cuts(tokenizer, ring, [Cut(start=0, length=length)])
        assert len(tokenizer.encode(text)) == length

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ConfigError
from tokenweir.sim.prefix import BLOCK_WORDS, PrefixCache
from tokenweir.sim.tokens import CYCLE, counter, estimate, word_ids, words

STARTS = st.integers(min_value=0, max_value=CYCLE - 1)


@given(STARTS, st.integers(min_value=1, max_value=3 * CYCLE), st.integers(min_value=1, max_value=50))
def test_words_cut_anywhere_join_to_the_same_text(start: int, count: int, more: int) -> None:
    whole = words(start, count + more)
    assert whole.startswith(words(start, count))
    assert words((start + count) % CYCLE, more) == whole[5 * count :]
    assert estimate(whole.decode()) == count + more
    assert len(word_ids(start, count).split(b",")) == count


def test_one_word_is_one_token_and_long_words_are_counted_by_bytes() -> None:
    assert estimate("the lake is still") == 4
    assert estimate("") == 0
    assert estimate("x" * 40) == 10
    assert estimate("水" * 20) == 15


def test_a_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json"):
        counter(str(tmp_path / "none.json"))


def test_a_prefix_seen_before_is_cached_in_whole_blocks() -> None:
    cache = PrefixCache(1024)
    prompt = words(0, 3 * BLOCK_WORDS + 5).decode()
    tokens = estimate(prompt)
    assert cache.match(prompt, tokens) == 0
    assert cache.match(prompt, tokens) == 3 * BLOCK_WORDS
    other = words(0, BLOCK_WORDS).decode() + words(99, BLOCK_WORDS).decode()
    assert cache.match(other, 2 * BLOCK_WORDS) == BLOCK_WORDS
    assert cache.clear() == 4 * BLOCK_WORDS
    assert cache.match(prompt, tokens) == 0


def test_a_whole_prompt_is_never_cached_to_its_last_token() -> None:
    cache = PrefixCache(1024)
    prompt = words(0, BLOCK_WORDS).decode()
    cache.match(prompt, BLOCK_WORDS)
    assert cache.match(prompt, BLOCK_WORDS) == BLOCK_WORDS - 1


def test_the_cache_is_bounded_and_can_be_off() -> None:
    cache = PrefixCache(2 * BLOCK_WORDS)
    cache.match(words(0, 10 * BLOCK_WORDS).decode(), 10 * BLOCK_WORDS)
    assert cache.clear() == 2 * BLOCK_WORDS
    off = PrefixCache(0)
    assert off.match(words(0, 50).decode(), 50) == off.match(words(0, 50).decode(), 50) == 0

from __future__ import annotations

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.runtime.engines.mlx.prefixes import PrefixTrie

Tokens = tuple[int, ...]
SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple), max_size=30)


def common(one: Tokens, other: Tokens) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


@given(SEQUENCES, st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple))
def test_the_longest_common_beginning_is_found(sequences: list[Tokens], asked: Tokens) -> None:
    trie: PrefixTrie[Tokens] = PrefixTrie(10_000, shortening=True)
    for sequence in sequences:
        trie.insert(sequence, sequence, len(sequence))
    best = max((min(common(sequence, asked), len(asked) - 1) for sequence in sequences), default=0)
    match = trie.search(asked)
    assert (match.length if match else 0) == best
    if match is not None:
        assert match.tokens == len(match.value)
        assert match.value[: match.length] == asked[: match.length]


@given(SEQUENCES, st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple))
def test_what_cannot_be_shortened_serves_only_what_goes_on_after_it(
    sequences: list[Tokens], asked: Tokens
) -> None:
    trie: PrefixTrie[Tokens] = PrefixTrie(10_000, shortening=False)
    for sequence in sequences:
        trie.insert(sequence, sequence, len(sequence))
    best = max(
        (
            len(sequence)
            for sequence in sequences
            if len(sequence) < len(asked) and asked[: len(sequence)] == sequence
        ),
        default=0,
    )
    match = trie.search(asked)
    assert (match.length if match else 0) == best
    assert match is None or match.tokens == match.length


@given(SEQUENCES, st.integers(5, 40), st.booleans())
def test_the_bytes_are_those_of_the_entries_and_within_the_limit(
    sequences: list[Tokens],
    limit: int,
    shortening: bool,  # noqa: FBT001
) -> None:
    trie: PrefixTrie[Tokens] = PrefixTrie(limit, shortening=shortening)
    for sequence in sequences:
        trie.insert(sequence, sequence, len(sequence))
        entries = dict(trie.entries())
        assert trie.used_bytes == sum(map(len, entries)) <= limit
        assert all(tokens == value for tokens, value in entries.items())
        assert len(trie) == len(entries)


def test_the_least_recently_used_goes_first() -> None:
    trie: PrefixTrie[str] = PrefixTrie(30, shortening=True)
    for name, first in (("a", 1), ("b", 2), ("c", 3)):
        trie.insert((first, 9, 9), name, 10)
    assert trie.search((1, 9, 9, 4)) is not None
    trie.insert((4, 9, 9), "d", 10)
    assert [value for _, value in trie.entries()] == ["d", "a", "c"]


def test_an_entry_takes_the_place_of_its_own_beginnings() -> None:
    trie: PrefixTrie[str] = PrefixTrie(100, shortening=True)
    trie.insert((1, 2), "short", 2)
    trie.insert((1, 2, 3, 4), "long", 4)
    assert [value for _, value in trie.entries()] == ["long"]
    assert trie.covers((1, 2, 3))
    assert not trie.insert((1, 2, 3), "between", 3)


def test_what_is_larger_than_the_limit_is_not_kept() -> None:
    trie: PrefixTrie[str] = PrefixTrie(10, shortening=True)
    trie.insert((1,), "small", 5)
    assert not trie.insert((2,), "large", 11)
    assert len(trie) == 1
    trie.clear()
    assert trie.search((1, 2)) is None
    assert trie.used_bytes == 0

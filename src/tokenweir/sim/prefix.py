"""A prefix cache's double: which leading blocks of a prompt have been seen lately."""

from __future__ import annotations

from typing import Final

BLOCK_WORDS: Final = 16


class PrefixCache:
    """Remembers blocks of 16 words, each with all that stood before it; the least recently used go first.

    ``capacity_tokens`` bounds what is remembered; 0 remembers nothing.
    """

    __slots__ = ("_blocks", "_capacity")

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens // BLOCK_WORDS
        self._blocks: dict[int, None] = {}

    def match(self, text: str, tokens: int) -> int:
        """Return how many of ``tokens`` input tokens are cached, and remember the prompt.

        The last token is never cached: an engine has to compute at least one.
        """
        if not self._capacity:
            return 0
        words = text.split()
        state = 0
        hits = 0
        missed = False
        for start in range(0, len(words) - BLOCK_WORDS + 1, BLOCK_WORDS):
            state = hash((state, *words[start : start + BLOCK_WORDS]))
            missed = missed or state not in self._blocks
            hits += not missed
            self._blocks.pop(state, None)
            self._blocks[state] = None
        while len(self._blocks) > self._capacity:
            del self._blocks[next(iter(self._blocks))]
        return min(hits * BLOCK_WORDS, max(tokens - 1, 0))

    def clear(self) -> int:
        """Forget everything; return the tokens that were remembered."""
        count = len(self._blocks) * BLOCK_WORDS
        self._blocks.clear()
        return count

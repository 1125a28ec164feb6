"""Counting and making token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """A model's tokenizer, or an estimate of one."""

    @property
    def exact(self) -> bool:
        """Whether counts are those of the model's own tokenizer."""
        ...

    @property
    def hash(self) -> str | None:
        """SHA-256 of the tokenizer's file, lower-case hex; ``None`` for an estimate."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Return the token ids of ``text``, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        ...


class TokenCounter(Protocol):
    """Counts as a model's own tokenizer does. May be called from several threads at once."""

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens every text has, without special tokens."""
        ...

"""Guided answers: a mask over the vocabulary before each token of one sequence.

A guide belongs to one sequence and travels with it, so it cannot reach another row of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tokenweir.core.errors import WeirError
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.engines.mlx.arrays import from_numpy, integers


class Guide(Protocol):
    """What of one answer is allowed next."""

    @property
    def done(self) -> bool:
        """Whether the answer is whole and only its end is allowed."""
        ...

    def mask(self) -> NDArray[np.uint32]:
        """Return a bit for each token of the vocabulary, the lowest first: 1 where it may come next."""
        ...

    def accept(self, token: int) -> None:
        """Go on by ``token``. Raises GuidanceError where it was not allowed."""
        ...


class Compiler(Protocol):
    """Makes guides for one vocabulary."""

    def compile(self, guidance: Guidance) -> Guide:
        """Return a fresh guide. Raises GuidanceError."""
        ...


class GuideProcessor:
    """Forbids what a guide does not allow.

    MLX LM draws a token before the one before it was looked at, so this is called once more after the
    end, and again with the same tokens when a sequence was set aside: only a longer answer moves the guide.
    """

    def __init__(self, guide: Guide, prompt_tokens: int, stop_tokens: Collection[int]) -> None:
        self._guide = guide
        self._prompt_tokens = prompt_tokens
        self._stops = frozenset(stop_tokens)
        self._accepted = 0
        self._ended = False
        self.error: WeirError | None = None

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        """Return ``logits`` without what is not allowed after ``context``."""
        drawn = context.shape[0] - self._prompt_tokens
        if drawn > self._accepted:
            self._accepted = drawn
            self._accept(integers(context[-1:])[0])
        width = logits.shape[-1]
        allowed = self._only_the_end(width) if self._ended else self._allowed(width)
        return mx.where(from_numpy(allowed), logits, -math.inf)

    def _accept(self, token: int) -> None:
        if self._ended or token in self._stops:
            self._ended = True
            return
        try:
            self._guide.accept(token)
        except WeirError as error:
            self.error = error
            self._ended = True

    def _allowed(self, width: int) -> NDArray[np.bool_]:
        bits = np.unpackbits(self._guide.mask().view(np.uint8), bitorder="little")[:width]
        allowed = np.zeros(width, dtype=np.bool_)
        allowed[: len(bits)] = bits
        # A row without any token would make every probability 0/0.
        return allowed if allowed.any() else self._only_the_end(width)

    def _only_the_end(self, width: int) -> NDArray[np.bool_]:
        allowed = np.zeros(width, dtype=np.bool_)
        ends = [token for token in self._stops if token < width]
        allowed[ends or slice(None)] = True
        return allowed

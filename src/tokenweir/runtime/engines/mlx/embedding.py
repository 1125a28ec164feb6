"""Vectors from a model that writes text: its last hidden states, averaged over the input and scaled to length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

import mlx.core as mx

from tokenweir.core.errors import InputError
from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.arrays import to_numpy
from tokenweir.runtime.engines.mlx.framework import Model

_TOGETHER: Final = 16
_LEAST_NORM: Final = 1e-12


class Body(Protocol):
    """A model without its output layer: tokens by row to hidden states by row and place."""

    def __call__(self, inputs: mx.array) -> mx.array:
        """Return the hidden states."""
        ...


class MeanEmbedder:
    """Averages hidden states. Attention is causal, so what pads a shorter input cannot reach its own tokens."""

    def __init__(self, body: Body, *, context_tokens: int, vocabulary: int) -> None:
        self._body = body
        self._context_tokens = context_tokens
        self._vocabulary = vocabulary

    def embed(self, inputs: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        """Return one vector of unit length for each input.

        Raises:
            InputError: an input is empty, longer than the context, or holds unknown tokens.
        """
        for at, tokens in enumerate(inputs):
            self._check(at, tokens)
        order = sorted(range(len(inputs)), key=lambda at: len(inputs[at]))
        found: list[Sequence[float]] = [()] * len(inputs)
        with framework.device_stream():
            for start in range(0, len(order), _TOGETHER):
                together = order[start : start + _TOGETHER]
                vectors = self._vectors([inputs[at] for at in together])
                for at, vector in zip(together, vectors, strict=True):
                    found[at] = vector
        return found

    def _vectors(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        width = max(len(tokens) for tokens in inputs)
        lengths = mx.array([len(tokens) for tokens in inputs])
        hidden = self._body(mx.array([[*tokens, *[0] * (width - len(tokens))] for tokens in inputs]))
        inside = (mx.arange(width)[None, :] < lengths[:, None])[:, :, None]
        mean = mx.where(inside, hidden.astype(mx.float32), 0).sum(axis=1) / lengths[:, None]
        norm = mx.maximum(mx.linalg.norm(mean, axis=-1, keepdims=True), _LEAST_NORM)
        values = to_numpy(mean / norm).reshape(len(inputs), -1)
        return [[float(value) for value in row] for row in values]

    def _check(self, at: int, tokens: Sequence[int]) -> None:
        if not tokens:
            raise InputError(f"input {at} has no tokens", mend="send some text")
        if len(tokens) > self._context_tokens:
            raise InputError(
                f"input {at} has {len(tokens)} tokens, and the context {self._context_tokens}",
                mend="split it",
            )
        if min(tokens) < 0 or max(tokens) >= self._vocabulary:
            raise InputError(
                f"input {at} has tokens that are not in the vocabulary", mend="send the model's own"
            )


def body_of(model: Model) -> Body | None:
    """Return the part of a model that makes hidden states; ``None`` where it is not set apart."""
    inner: Any = getattr(model, "model", None)
    language: Any = getattr(model, "language_model", None)
    if inner is None and language is not None:
        inner = getattr(language, "model", None)
    return cast("Body", inner) if callable(inner) else None

"""A language model's weights as NumPy sees them: the same memory, and the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from tokenweir.runtime.engines.mlx.arrays import named_arrays
from tokenweir.runtime.engines.mlx.framework import Model

Floats: TypeAlias = NDArray[np.float32]

_PIECES: Final = (64, 32, 16)
_MOST_RESULTS: Final = 1200
_MOST_PRODUCTS: Final = 1_000_000
"""Up to here OpenBLAS takes a product for a small one."""

_MODULES: Final = {f"mlx_lm.models.{name}" for name in ("llama", "qwen2", "qwen3")}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj", "rope"}
_NORMS: Final = {"q_norm", "k_norm"}
_FEED_FORWARD: Final = {"gate_proj", "up_proj", "down_proj"}
_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_BODY: Final = {"embed_tokens", "layers", "norm"}


class Linear(NamedTuple):
    """A matrix of outputs by inputs, and what is added.

    ``in_pieces`` says that a BLAS multiplies a few rows of it at a time without copying them first.
    """

    matrix: Floats
    bias: Floats | None
    in_pieces: bool

    def __call__(self, rows: Floats, out: Floats | None = None) -> Floats:
        """Return the product with each row."""
        outputs, inputs = self.matrix.shape
        piece = _piece(len(rows), inputs, outputs) if self.in_pieces else None
        if piece is None:
            found = np.matmul(rows, self.matrix.T, out=out)
        else:
            found = np.empty((len(rows), outputs), np.float32) if out is None else out
            pieces = self.matrix.reshape(-1, piece, inputs).swapaxes(1, 2)
            np.matmul(rows, pieces, out=found.reshape(len(rows), -1, piece).swapaxes(0, 1))
        if self.bias is not None:
            found += self.bias
        return found


@functools.lru_cache(1024)
def _piece(rows: int, inputs: int, outputs: int) -> int | None:
    """Return how many outputs to compute at a time for that many rows; ``None`` for all of them."""
    if rows == 1:
        return None
    for piece in _PIECES:
        if outputs % piece == 0 and rows * piece <= _MOST_RESULTS and rows * piece * inputs <= _MOST_PRODUCTS:
            return piece
    return None


class Norm(NamedTuple):
    """A root-mean-square norm."""

    weight: Floats
    epsilon: float

    def __call__(self, rows: Floats) -> Floats:
        """Return each row, normed."""
        scale = np.einsum("...i,...i->...", rows, rows)
        scale /= rows.shape[-1]
        scale += self.epsilon
        np.sqrt(scale, out=scale)
        normed = rows / scale[..., None]
        normed *= self.weight
        return normed


class Layer(NamedTuple):
    """One layer: attention and feed-forward, each behind a norm."""

    before_attention: Norm
    queries: Linear
    keys: Linear
    values: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    output: Linear
    before_feed_forward: Norm
    gate: Linear
    up: Linear
    down: Linear


class Weights(NamedTuple):
    """All of a model. ``rotation`` turns a row by its place in the sequence, as the model itself does."""

    embedding: Floats
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear
    heads: int
    kv_heads: int
    head_width: int
    scale: float
    rotation: Callable[[mx.array], mx.array]


def read(model: Model, *, in_pieces: bool) -> Weights | None:
    """Return the weights of a model of a known build, in 32-bit floats; ``None`` for any other.

    The model goes on to use them where they are. ``in_pieces`` is how they are multiplied (:class:`Linear`).
    """
    if not _is_known(model):
        return None
    whole: Any = model
    body = whole.model
    first = body.layers[0].self_attn
    embedding = view(body.embed_tokens.weight)
    return Weights(
        embedding=embedding,
        layers=tuple(_layer(layer, in_pieces=in_pieces) for layer in body.layers),
        norm=_norm(body.norm),
        head=(
            _linear(whole.lm_head, in_pieces=in_pieces)
            if "lm_head" in whole
            else Linear(embedding, None, in_pieces)
        ),
        heads=first.n_heads,
        kv_heads=first.n_kv_heads,
        head_width=first.k_proj.weight.shape[0] // first.n_kv_heads,
        scale=float(first.scale),
        rotation=first.rope,
    )


def view(array: mx.array) -> NDArray[Any]:
    """Return the memory of an array, which is computed for it. What is written into it is in the array."""
    return np.array(cast("Any", array), copy=False)


def _is_known(model: Model) -> bool:
    """Return whether a model is built as this module expects: every part of it, and nothing else."""
    whole: Any = model
    if type(model).__module__ not in _MODULES or set(whole) - {"lm_head"} != {"model"}:
        return False
    if any(array.dtype != mx.float32 for _, array in named_arrays(model.parameters())):
        return False
    if (
        set(whole.model) - {"layer_types"} != _BODY
        or not whole.model.layers
        or type(whole.model.embed_tokens) is not nn.Embedding
    ):
        return False
    return all(_is_plain(layer) for layer in whole.model.layers) and _are_linear(
        whole, {"lm_head"} & set(whole)
    )


def _is_plain(layer: Any) -> bool:  # noqa: ANN401 - a module of MLX
    if set(layer) != _LAYER or getattr(layer, "use_sliding", False):
        return False
    attention, feed_forward = layer.self_attn, layer.mlp
    if set(attention) - _NORMS != _ATTENTION or set(feed_forward) != _FEED_FORWARD:
        return False
    rope = attention.rope
    if type(rope) is not nn.RoPE or rope.traditional:
        return False
    return _are_linear(attention, _ATTENTION - {"rope"}) and _are_linear(feed_forward, _FEED_FORWARD)


def _are_linear(parts: Any, names: set[str]) -> bool:  # noqa: ANN401 - a module of MLX
    return all(type(parts[name]) is nn.Linear for name in names)


def _layer(layer: Any, *, in_pieces: bool) -> Layer:  # noqa: ANN401 - a module of MLX
    attention, feed_forward = layer.self_attn, layer.mlp
    linear = functools.partial(_linear, in_pieces=in_pieces)
    return Layer(
        before_attention=_norm(layer.input_layernorm),
        queries=linear(attention.q_proj),
        keys=linear(attention.k_proj),
        values=linear(attention.v_proj),
        query_norm=_norm(attention.q_norm) if "q_norm" in attention else None,
        key_norm=_norm(attention.k_norm) if "k_norm" in attention else None,
        output=linear(attention.o_proj),
        before_feed_forward=_norm(layer.post_attention_layernorm),
        gate=linear(feed_forward.gate_proj),
        up=linear(feed_forward.up_proj),
        down=linear(feed_forward.down_proj),
    )


def _linear(linear: Any, *, in_pieces: bool) -> Linear:  # noqa: ANN401 - a module of MLX
    linear.weight = mx.contiguous(linear.weight)
    return Linear(view(linear.weight), view(linear.bias) if "bias" in linear else None, in_pieces)


def _norm(norm: Any) -> Norm:  # noqa: ANN401 - a module of MLX
    return Norm(view(norm.weight), norm.eps)

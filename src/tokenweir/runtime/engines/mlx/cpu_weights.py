"""A language model's weights as NumPy sees them: the same memory, and the same numbers.

Matrices are laid out by column first, which is how a BLAS reads them fastest when few rows are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from tokenweir.runtime.engines.mlx.arrays import evaluate, named_arrays
from tokenweir.runtime.engines.mlx.framework import Model

Floats: TypeAlias = NDArray[np.float32]

_MODULES: Final = {f"mlx_lm.models.{name}" for name in ("llama", "qwen2", "qwen3")}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj", "rope"}
_NORMS: Final = {"q_norm", "k_norm"}
_FEED_FORWARD: Final = {"gate_proj", "up_proj", "down_proj"}
_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_BODY: Final = {"embed_tokens", "layers", "norm"}


class Linear(NamedTuple):
    """A matrix of inputs by outputs, and what is added."""

    matrix: Floats
    bias: Floats | None

    def __call__(self, rows: Floats, out: Floats | None = None) -> Floats:
        """Return the product with each row."""
        found = np.matmul(rows, self.matrix, out=out)
        if self.bias is not None:
            found += self.bias
        return found


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


def read(model: Model) -> Weights | None:
    """Return the weights of a model of a known build, in 32-bit floats; ``None`` for any other.

    The model goes on to use them where they are then.
    """
    if not _is_known(model):
        return None
    whole: Any = model
    body = whole.model
    first = body.layers[0].self_attn
    head = (
        _linear(whole.lm_head) if "lm_head" in whole else Linear(view(body.embed_tokens.weight).T, bias=None)
    )
    return Weights(
        embedding=view(body.embed_tokens.weight),
        layers=tuple(_layer(layer) for layer in body.layers),
        norm=_norm(body.norm),
        head=head,
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


def _layer(layer: Any) -> Layer:  # noqa: ANN401 - a module of MLX
    attention, feed_forward = layer.self_attn, layer.mlp
    return Layer(
        before_attention=_norm(layer.input_layernorm),
        queries=_linear(attention.q_proj),
        keys=_linear(attention.k_proj),
        values=_linear(attention.v_proj),
        query_norm=_norm(attention.q_norm) if "q_norm" in attention else None,
        key_norm=_norm(attention.k_norm) if "k_norm" in attention else None,
        output=_linear(attention.o_proj),
        before_feed_forward=_norm(layer.post_attention_layernorm),
        gate=_linear(feed_forward.gate_proj),
        up=_linear(feed_forward.up_proj),
        down=_linear(feed_forward.down_proj),
    )


def _linear(linear: Any) -> Linear:  # noqa: ANN401 - a module of MLX
    by_column = mx.contiguous(linear.weight.T)
    evaluate(by_column)
    linear.weight = by_column.T
    evaluate(linear.weight)
    return Linear(view(by_column), view(linear.bias) if "bias" in linear else None)


def _norm(norm: Any) -> Norm:  # noqa: ANN401 - a module of MLX
    return Norm(view(norm.weight), norm.eps)

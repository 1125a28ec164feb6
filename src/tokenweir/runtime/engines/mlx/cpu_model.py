"""A language model computed with NumPy on the CPU, in the place of MLX's own computation.

MLX computes on a GPU in the first place. Its CPU back end takes a step of a small model apart into hundreds of
operations that are handed to another thread one by one, and its exponential function uses no vector instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.arrays import evaluate, from_numpy
from tokenweir.runtime.engines.mlx.blas_threads import leave_cores
from tokenweir.runtime.engines.mlx.cpu_weights import Floats, Layer, Weights, read, view
from tokenweir.runtime.engines.mlx.framework import Cache, Forward, Model

_STEP: Final = 256
"""Places by which a cache grows."""

_NEVER: Final = np.float32(-1e30)
"""What is added to a score that must not count."""

_TOLERANCE: Final = 1e-3
_TRIAL: Final = ((0, 1, 1, 0, 1), (1, 0, 0, 1, 1))


class _Held(NamedTuple):
    """A layer's cache as it was seen last, and its memory."""

    arrays: tuple[mx.array, mx.array]
    keys: Floats
    values: Floats


class _Places(NamedTuple):
    """What all layers need to know of the tokens of a step: rotation by row, and which tokens are not to be seen.

    Row ``i`` is token ``i % width`` of sequence ``i // width``; the caches hold ``start`` places before them.
    """

    rows: int
    width: int
    start: int
    cosines: Floats
    sines: Floats
    hidden: Floats | None


class CpuModel:
    """A model for a batch, whose caches are MLX LM's own.

    Of several tokens by row it returns no logits: a batch reads prompts for their cache alone.
    """

    def __init__(self, model: Model, weights: Weights) -> None:
        self._model = model
        self._weights = weights
        self._held: WeakKeyDictionary[Any, _Held] = WeakKeyDictionary()
        self._turns: Floats = np.empty((0, weights.head_width), np.float32)

    @property
    def layers(self) -> Sequence[Any]:
        """The model's layers."""
        return self._model.layers

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Return the logits of the next token by row, and note the tokens in the cache, a batch's."""
        caches = cast("Sequence[Any]", cache or [])
        tokens = view(inputs)
        with np.errstate(over="ignore"):
            places = self._places(tokens, caches[0])
            if places.width > 1:
                self._computed(tokens, caches, places)
                logits = mx.zeros((places.rows, 0, self._weights.head.matrix.shape[1]))
            else:
                rows = self._computed(tokens, caches, places)
                logits = from_numpy(self._weights.head(self._weights.norm(rows))[:, None, :])
        for each in caches:
            each._idx += places.width  # noqa: SLF001 - a cache has no other way to be told
            each.offset = from_numpy(view(each.offset) + np.int32(places.width))
        return logits

    def _computed(self, tokens: NDArray[Any], caches: Sequence[Any], places: _Places) -> Floats:
        """Return what the layers make of the tokens; of several by row, only the caches are whole."""
        rows: Floats = self._weights.embedding[tokens.reshape(-1)]
        for cache, layer in zip(caches, self._weights.layers, strict=True):
            keys, values = self._memory(cache, places)
            queries = self._attend_to(layer, rows, keys, values, places)
            if layer is self._weights.layers[-1] and places.width > 1:
                break
            rows = rows + layer.output(self._attention(queries, keys, values, places))
            rows += _feed_forward(layer, layer.before_feed_forward(rows))
        return rows

    def _places(self, tokens: NDArray[Any], cache: Any) -> _Places:  # noqa: ANN401 - MLX LM's
        rows, width = tokens.shape
        start: int = cache._idx  # noqa: SLF001 - as above
        at: NDArray[np.int32] = view(cache.offset)[:, None] + np.arange(width, dtype=np.int32)
        # What is before the first token counts for nothing, and must only not be looked up.
        turns = self._turned(int(at.max()) + 1)[np.maximum(at, 0).reshape(-1), None, :]
        half = turns.shape[-1] // 2
        return _Places(
            rows,
            width,
            start,
            turns[..., :half],
            turns[..., half:],
            _hidden(width, start, view(cache.left_padding)),
        )

    def _turned(self, count: int) -> Floats:
        """Return cosine and sine of the angles at the first ``count`` places."""
        if len(self._turns) < count:
            width = self._weights.head_width
            unit = mx.concatenate([mx.ones((width // 2,)), mx.zeros((width // 2,))])
            rows = mx.broadcast_to(unit, (1, 1, -(-count // _STEP) * _STEP, width))
            self._turns = view(self._weights.rotation(rows))[0, 0].copy()
        return self._turns

    def _memory(self, cache: Any, places: _Places) -> tuple[Floats, Floats]:  # noqa: ANN401 - MLX LM's
        """Return keys and values of a layer, with room for this step's."""
        end = places.start + places.width
        if cache.keys is None or cache.keys.shape[2] < end:
            cache.keys, cache.values = (
                self._grown(array, places, end) for array in (cache.keys, cache.values)
            )
        held = self._held.get(cache)
        if held is None or held.arrays[0] is not cache.keys or held.arrays[1] is not cache.values:
            held = self._held[cache] = _Held((cache.keys, cache.values), view(cache.keys), view(cache.values))
        return held.keys[:, :, :end], held.values[:, :, :end]

    def _grown(self, array: mx.array | None, places: _Places, end: int) -> mx.array:
        shape = (places.rows, self._weights.kv_heads, -(-end // _STEP) * _STEP, self._weights.head_width)
        grown = mx.zeros(shape)
        if array is not None and places.start:
            view(grown)[:, :, : places.start] = view(array)[:, :, : places.start]
        return grown

    def _attend_to(self, layer: Layer, rows: Floats, keys: Floats, values: Floats, places: _Places) -> Floats:
        """Return the queries of a step, and put its keys and values where they belong."""
        of = self._weights
        normed = layer.before_attention(rows)
        count = len(rows)
        queries = layer.queries(normed).reshape(count, of.heads, of.head_width)
        own = layer.keys(normed).reshape(count, of.kv_heads, of.head_width)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, own = layer.query_norm(queries), layer.key_norm(own)
        by_row = (places.rows, places.width, of.kv_heads, of.head_width)
        keys[:, :, places.start :] = _rotated(own, places).reshape(by_row).swapaxes(1, 2)
        values[:, :, places.start :] = layer.values(normed).reshape(by_row).swapaxes(1, 2)
        return _rotated(queries, places)

    def _attention(self, queries: Floats, keys: Floats, values: Floats, places: _Places) -> Floats:
        """Return what each query finds, heads side by side. Queries that share keys are multiplied together."""
        of = self._weights
        shared = of.heads // of.kv_heads
        queries *= np.float32(of.scale)
        if places.width > 1:
            queries = queries.reshape(places.rows, places.width, of.kv_heads, shared, of.head_width)
            queries = queries.transpose(0, 2, 3, 1, 4)
        queries = queries.reshape(places.rows, of.kv_heads, shared * places.width, of.head_width)
        scores = queries @ keys.swapaxes(-1, -2)
        if places.hidden is not None:
            by_token = scores.reshape(places.rows, of.kv_heads, shared, places.width, -1)
            by_token += places.hidden
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        found = scores @ values
        found /= scores.sum(axis=-1, keepdims=True)
        if places.width > 1:
            found = found.reshape(places.rows, of.kv_heads, shared, places.width, of.head_width)
            found = found.transpose(0, 3, 1, 2, 4)
        return found.reshape(places.rows * places.width, of.heads * of.head_width)


def fastest(model: Model) -> Forward:
    """Return what computes a batch of ``model`` fastest on this device: itself, or NumPy in its place.

    NumPy is taken where the device is a CPU and both come to the same in a trial.
    """
    if mx.default_device() != mx.Device(mx.cpu):
        return model
    weights = read(model)
    if weights is None:
        return model
    leave_cores()
    ours = CpuModel(model, weights)
    return ours if _agree(model, ours) else model


def _agree(model: Model, ours: CpuModel) -> bool:
    """Return whether both give the same logits after a short prompt."""
    prompt = mx.array(_TRIAL)
    found: list[mx.array] = []
    for each in (model, ours):
        caches = framework.batch_cache(model, len(_TRIAL))
        each(prompt[:, :-1], cache=caches)
        found.append(each(prompt[:, -1:], cache=caches))
    evaluate(found)
    expected, got = (np.asarray(cast("Any", logits)) for logits in found)
    return bool(np.abs(expected - got).max() <= _TOLERANCE * max(1.0, float(np.abs(expected).max())))


def _hidden(width: int, start: int, padding: NDArray[np.int32]) -> Floats | None:
    """Return what keeps each token from those after it, and from what pads its sequence in front."""
    if width == 1 and not padding.any():
        return None
    seen = np.arange(start + width)
    hidden = seen < padding[:, None, None, None, None]
    if width > 1:
        hidden = hidden | (seen > start + np.arange(width)[:, None])
    return np.where(hidden, _NEVER, np.float32(0))


def _rotated(heads: Floats, places: _Places) -> Floats:
    """Return each head turned by its token's place."""
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    turned = np.empty_like(heads)
    np.multiply(first, places.cosines, out=turned[..., :half])
    np.multiply(second, places.cosines, out=turned[..., half:])
    turned[..., :half] -= second * places.sines
    turned[..., half:] += first * places.sines
    return turned


def _feed_forward(layer: Layer, rows: Floats) -> Floats:
    """Return what the layer's feed-forward part makes of each row."""
    gate = layer.gate(rows)
    # A gate far below zero lets nothing through: the exponential is infinite then.
    opened = np.negative(gate)
    np.exp(opened, out=opened)
    opened += 1
    gate /= opened
    gate *= layer.up(rows)
    return layer.down(gate)

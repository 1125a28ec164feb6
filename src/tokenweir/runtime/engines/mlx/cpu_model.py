"""A language model computed with NumPy on the CPU, in the place of MLX's own computation.

MLX computes on a GPU in the first place. Its CPU back end takes a step of a small model apart into hundreds of
operations that are handed to another thread one by one, and its exponential function uses no vector instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tokenweir.runtime.engines.mlx import framework, hands
from tokenweir.runtime.engines.mlx.arrays import evaluate, from_numpy
from tokenweir.runtime.engines.mlx.blas_threads import leave_cores
from tokenweir.runtime.engines.mlx.cpu_weights import Floats, Layer, Weights, read, view
from tokenweir.runtime.engines.mlx.framework import Cache, Forward, Model
from tokenweir.runtime.engines.mlx.hands import Hands

_STEP: Final = 256
_SHORT_STEP: Final = 64
"""Places by which a cache grows; a short one by less, for it is copied whole when a sequence joins or leaves."""

_SHARE: Final = 12
"""Tokens that are worth a hand's while."""

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

    def of(self, first: int, end: int) -> _Places:
        """Return those of the sequences from ``first`` to before ``end``."""
        tokens = slice(first * self.width, end * self.width)
        hidden = None if self.hidden is None else self.hidden[first:end]
        return self._replace(
            rows=end - first, cosines=self.cosines[tokens], sines=self.sines[tokens], hidden=hidden
        )


class _Share(NamedTuple):
    """Some sequences of a step: their tokens, keys and values by layer, and where their logits go, if anywhere."""

    tokens: NDArray[Any]
    memory: list[tuple[Floats, Floats]]
    places: _Places
    logits: Floats | None


class CpuModel:
    """A model for a batch, whose caches are MLX LM's own.

    Of several tokens by row it returns no logits: a batch reads prompts for their cache alone.
    """

    def __init__(self, model: Model, weights: Weights, team: Hands) -> None:
        self._model = model
        self._weights = weights
        self._hands = team
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
        places = self._places(tokens, caches[0])
        memory = [self._memory(each, places) for each in caches]
        words = self._weights.head.matrix.shape[0]
        logits = None if places.width > 1 else np.empty((places.rows, 1, words), np.float32)
        self._hands.work(self._compute, self._shares(_Share(tokens, memory, places, logits)))
        for each in caches:
            each._idx += places.width  # noqa: SLF001 - a cache has no other way to be told
            each.offset = from_numpy(view(each.offset) + np.int32(places.width))
        return mx.zeros((places.rows, 0, words)) if logits is None else from_numpy(logits)

    def _shares(self, whole: _Share) -> list[_Share]:
        """Return a share for each hand, where there is enough to do."""
        rows = whole.places.rows
        count = max(1, min(self._hands.count, rows * whole.places.width // _SHARE, rows))
        if count == 1:
            return [whole]
        borders = [rows * part // count for part in range(count + 1)]
        return [
            _Share(
                whole.tokens[first:end],
                [(keys[first:end], values[first:end]) for keys, values in whole.memory],
                whole.places.of(first, end),
                None if whole.logits is None else whole.logits[first:end],
            )
            for first, end in pairwise(borders)
        ]

    def _compute(self, share: _Share) -> None:
        """Write logits; of several tokens by row, only the caches are whole."""
        of = self._weights
        places = share.places
        with np.errstate(over="ignore"):
            rows: Floats = of.embedding[share.tokens.reshape(-1)]
            for (keys, values), layer in zip(share.memory, of.layers, strict=True):
                queries = self._attend_to(layer, rows, keys, values, places)
                if layer is of.layers[-1] and places.width > 1:
                    break
                rows = rows + layer.output(self._attention(queries, keys, values, places))
                rows += _feed_forward(layer, layer.before_feed_forward(rows))
            if share.logits is not None:
                of.head(of.norm(rows), out=share.logits[:, 0])

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
        step = _STEP if end > _STEP else _SHORT_STEP
        shape = (places.rows, self._weights.kv_heads, -(-end // step) * step, self._weights.head_width)
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
    multiplying = leave_cores()
    weights = read(model, in_pieces=multiplying.in_pieces)
    if weights is None:
        return model
    ours = CpuModel(model, weights, hands.shared(multiplying.hands))
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

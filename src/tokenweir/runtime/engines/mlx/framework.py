"""The names of MLX LM that this engine uses, with types: the one place to look when that package changes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import mlx.core as mx

from tokenweir.runtime.engines.mlx.light_import import import_mlx_lm

_modules = import_mlx_lm()
_generate: Any = _modules["mlx_lm.generate"]
_sample: Any = _modules["mlx_lm.sample_utils"]
_utils: Any = _modules["mlx_lm.utils"]
_cache: Any = _modules["mlx_lm.models.cache"]

Sampler = Callable[[mx.array], mx.array]
"""Log probabilities by row to one token for each."""

Processor = Callable[[mx.array, mx.array], mx.array]
"""All tokens so far and one row of logits to that row, changed."""


class LayerCache(Protocol):
    """What one layer remembers of a sequence."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        ...

    @property
    def state(self) -> Any:  # noqa: ANN401 - arrays, numbers and nothing, nested by the kind of cache
        """Its arrays."""
        ...

    def is_trimmable(self) -> bool:
        """Whether its last tokens can be forgotten."""
        ...

    def trim(self, n: int) -> int:
        """Forget the last ``n`` tokens."""
        ...


Cache = list[LayerCache]
"""What all layers remember of one sequence."""


class Forward(Protocol):
    """What computes a language model: tokens by row to logits by row and place."""

    @property
    def layers(self) -> Sequence[Any]:
        """The layers, a cache for each."""
        ...

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Return the logits."""
        ...


class Model(Forward, Protocol):
    """A language model of MLX LM."""

    def parameters(self) -> dict[str, Any]:
        """Return the weights, nested."""
        ...

    def set_dtype(self, dtype: mx.Dtype) -> None:
        """Change the type of floating-point weights."""
        ...


class PromptResponse(Protocol):
    """How far a prompt is; ``end_of_segment`` where only its last token is left, or nothing."""

    uid: int
    end_of_segment: bool
    end_of_prompt: bool


class TokenResponse(Protocol):
    """A token of a sequence."""

    uid: int
    token: int
    logprobs: mx.array
    finish_reason: str | None
    prompt_cache: Cache | None
    all_tokens: list[int] | None


class Batching(Protocol):
    """MLX LM's continuous batching."""

    prefill_step_size: int
    prefill_batch_size: int
    completion_batch_size: int

    def insert(
        self,
        prompts: list[list[int]],
        max_tokens: list[int],
        caches: list[Cache | None],
        all_tokens: list[list[int]],
        samplers: list[Sampler],
        logits_processors: list[list[Processor]],
        stop_sequences: list[Any],
    ) -> list[int]:
        """Take sequences on and return their numbers."""
        ...

    def extract_cache(self, uids: list[int]) -> dict[int, tuple[Cache, list[int]]]:
        """Return the cache of each sequence and the tokens in it, which are not to be changed."""
        ...

    def remove(self, uids: list[int]) -> object:
        """Forget sequences."""
        ...

    def next(self) -> tuple[list[PromptResponse], list[TokenResponse]]:
        """Advance by a step."""
        ...

    def close(self) -> None:
        """Give back what the device keeps for it."""
        ...


def batching(model: Forward, *, batch: int, prefill_batch: int) -> Batching:
    """Return continuous batching over ``model``."""
    generator: Any = _generate.BatchGenerator(
        cast("Any", model), completion_batch_size=batch, prefill_batch_size=prefill_batch
    )
    return cast("Batching", generator)


@functools.lru_cache(64)
def stop_at(tokens: tuple[int, ...]) -> Any:  # noqa: ANN401 - opaque, for Batching.insert
    """Return what ends a sequence of a batch at any of ``tokens``."""
    return _generate.StopSequences([[token] for token in tokens] or None)


def new_cache(model: Model) -> Cache:
    """Return an empty cache."""
    return cast("Cache", _cache.make_prompt_cache(cast("Any", model)))


def batch_cache(model: Model, rows: int) -> Cache:
    """Return an empty cache of a batch of ``rows`` sequences."""
    return [_cache.BatchKVCache([0] * rows) for _ in model.layers]


def can_trim(cache: Cache) -> bool:
    """Return whether a cache's last tokens can be forgotten."""
    return bool(cache) and all(layer.is_trimmable() for layer in cache)


def trim(cache: Cache, tokens: int) -> None:
    """Forget the last ``tokens`` of a cache."""
    if tokens > 0:
        for layer in cache:
            layer.trim(tokens)


def cache_bytes(cache: Cache) -> int:
    """Return what a cache takes."""
    return sum(layer.nbytes for layer in cache)


def quantise_cache(cache: Cache, *, bits: int, group: int) -> None:
    """Quantise, in place, the layers of a cache that can be."""
    _generate.maybe_quantize_kv_cache(cache, 0, group, bits)


def load_model(path: Path, settings: Mapping[str, Any] | None = None) -> tuple[Model, dict[str, Any]]:
    """Read a model from a directory, lazily: no weights are in memory yet. No foreign code is run."""
    found: Any = _utils.load_model(path, lazy=True, model_config=dict(settings or {}))
    return cast("tuple[Model, dict[str, Any]]", found)


def quantise_model(
    model: Model, config: dict[str, Any], *, bits: int, group: int
) -> tuple[Model, dict[str, Any]]:
    """Quantise a model's weights and return it with the configuration that says so."""
    found: Any = _utils.quantize_model(model, config, group_size=group, bits=bits)
    return cast("tuple[Model, dict[str, Any]]", found)


def drop_weights(model: Model) -> None:
    """Take a model apart, so that its weights are free whoever still holds the model."""
    cast("dict[str, Any]", model).clear()


def save_weights(directory: Path, model: Model) -> None:
    """Write a model's weights as safetensors."""
    _utils.save_model(directory, cast("Any", model))


def save_config(path: Path, config: dict[str, Any]) -> None:
    """Write a model's configuration."""
    _utils.save_config(config, path)


def save_cache(path: Path, cache: Cache, metadata: dict[str, str]) -> None:
    """Write a cache to a file."""
    _cache.save_prompt_cache(str(path), cast("Any", cache), metadata)


def load_cache(path: Path) -> tuple[Cache, dict[str, str]]:
    """Read a cache and its metadata from a file."""
    found: Any = _cache.load_prompt_cache(str(path), return_metadata=True)
    return cast("tuple[Cache, dict[str, str]]", found)


def sampler(*, temperature: float, top_p: float, top_k: int, min_p: float) -> Sampler:
    """Return what draws tokens from log probabilities; they must be normalised."""
    return _sample.make_sampler(temp=temperature, top_p=top_p, top_k=top_k, min_p=min_p)


def narrow(logprobs: mx.array, *, top_p: float, top_k: int, min_p: float) -> mx.array:
    """Return log probabilities without the tokens that the three options leave out."""
    if 0 < top_p < 1:
        logprobs = _sample.apply_top_p(logprobs, top_p)
    if min_p > 0:
        logprobs = _sample.apply_min_p(logprobs, min_p)
    if 0 < top_k < logprobs.shape[-1]:
        logprobs = _sample.apply_top_k(logprobs, top_k)
    return logprobs


def device_stream() -> Any:  # noqa: ANN401 - a context manager whose type MLX does not name
    """Return the context in which all work on models is done: MLX LM's own stream of this thread."""
    return mx.stream(_generate.generation_stream)


def always_trimmable(model: Model) -> bool:
    """Return whether the cache of this model can forget its last tokens at any length."""
    return all(_plain(layer) for layer in new_cache(model))


def fork(cache: Cache) -> Cache:
    """Return a cache of the same content that can be trimmed and merged without changing this one.

    It must not be decoded with: both would write into the same arrays.
    """
    return [_fork(layer) for layer in cache]


def _plain(layer: LayerCache) -> bool:
    if isinstance(layer, _cache.CacheList):
        return all(_plain(inner) for inner in cast("Any", layer).caches)
    return isinstance(layer, _cache.KVCache)


def _fork(layer: LayerCache) -> LayerCache:
    twin: Any = copy.copy(layer)
    if isinstance(layer, _cache.CacheList):
        twin.caches = tuple(copy.copy(inner) for inner in twin.caches)
    return cast("LayerCache", twin)

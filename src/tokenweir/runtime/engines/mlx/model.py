"""A language model on the device, with everything that belongs to it."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import mlx.core as mx
import msgspec

from tokenweir.core.errors import GuidanceError, InputError
from tokenweir.ports.inference import (
    Capability,
    Decoder,
    Embedder,
    Guidance,
    LoadSpec,
    ModelCard,
    TextFormat,
    ToolCallFormat,
)
from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.arrays import evaluate
from tokenweir.runtime.engines.mlx.decoder import Bounds, MlxDecoder
from tokenweir.runtime.engines.mlx.embedding import MeanEmbedder, body_of
from tokenweir.runtime.engines.mlx.exclusive import Setting
from tokenweir.runtime.engines.mlx.framework import LayerCache, Model
from tokenweir.runtime.engines.mlx.kept_prompts import KeptPrompts
from tokenweir.runtime.engines.mlx.loading import Loaded, load
from tokenweir.runtime.engines.mlx.text import MlxText
from tokenweir.runtime.guidance.masks import GuideCompiler
from tokenweir.runtime.guidance.vocabulary import file_vocabulary
from tokenweir.runtime.models.artifacts import ArtifactCache
from tokenweir.runtime.models.drafts import check_draft
from tokenweir.runtime.models.tokenizers import FILE

_CACHE_GROUPS: Final = (64, 32)


class Caches(msgspec.Struct, frozen=True, kw_only=True):
    """What prompts may be kept: bytes in memory, and a place on disk for what outlives the process."""

    prefix_bytes: int = 0
    artifacts: ArtifactCache | None = None
    persist: bool = False


class MlxModel:
    """A model that :class:`InferenceEngine` loaded.

    Raises:
        InputError: the files are not what this engine runs, or the draft model does not fit.
    """

    def __init__(self, spec: LoadSpec, card: ModelCard, caches: Caches) -> None:
        directory = Path(card.path)
        self._text = MlxText(directory)
        if spec.draft is not None:
            check_draft(directory, Path(spec.draft).expanduser().resolve())
        with framework.device_stream():
            loaded = load(
                directory, revision=card.revision, weight_bits=spec.weight_bits, artifacts=caches.artifacts
            )
            draft = _draft(directory, spec.draft, loaded) if spec.draft is not None else None
            measured = _measure(loaded.model)
            kv_bytes = measured.kv_bytes
            if draft is not None and kv_bytes is not None:
                kv_bytes += _measure(draft.model).kv_bytes or 0
            kept = _kept(loaded.model, card, spec, caches)
        self._setting = Setting(
            model=loaded.model,
            draft=draft.model if draft is not None else None,
            cache_group=measured.cache_group,
        )
        stops = frozenset(token for token in self._text.stop_tokens if token < measured.width)
        self._compiler = (
            GuideCompiler(file_vocabulary(directory / FILE, width=measured.width, ends=stops))
            if stops
            else None
        )
        self._card = msgspec.structs.replace(
            card,
            weights_bytes=loaded.weights_bytes + (draft.weights_bytes if draft is not None else 0),
            vocabulary=measured.width,
            kv_bytes_per_token=kv_bytes if kv_bytes is not None else card.kv_bytes_per_token,
        )
        bounds = Bounds(context_tokens=card.context_tokens, vocabulary=measured.width, stop_tokens=stops)
        self._decoder: MlxDecoder | None = MlxDecoder(
            self._setting, bounds, kept=kept, compiler=self._compiler
        )
        body = body_of(loaded.model)
        self._embedder = (
            MeanEmbedder(body, context_tokens=card.context_tokens, vocabulary=measured.width)
            if body is not None
            else None
        )
        self._card = msgspec.structs.replace(self._card, capabilities=tuple(self._capabilities()))

    @property
    def card(self) -> ModelCard:
        """What it is, as loaded."""
        return self._card

    @property
    def format(self) -> TextFormat:
        """Its tokenizer and chat format."""
        return self._text

    @property
    def tool_calls(self) -> ToolCallFormat | None:
        """How it writes tool calls; ``None`` when it does not know tools."""
        return self._text.tool_calls

    @property
    def decoder(self) -> Decoder | None:
        """Its decoder."""
        return self._decoder

    @property
    def embedder(self) -> Embedder | None:
        """Its embedder, or ``None`` where hidden states are not to be had."""
        return self._embedder

    def check_guidance(self, guidance: Guidance) -> None:
        """Compile ``guidance`` for this model's vocabulary, and keep it. Safe beside the device thread.

        Raises:
            GuidanceError: it cannot be obeyed; the message names what in it cannot.
        """
        if self._compiler is None:
            raise GuidanceError(
                f"the model {self._card.name!r} states no token that ends an answer, so it cannot be guided",
                mend="state eos_token_id in its generation_config.json",
            )
        self._compiler.check(guidance)

    def close(self) -> None:
        """Give the device's memory back."""
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None
        self._embedder = None
        for model in (self._setting.model, self._setting.draft):
            if model is not None:
                framework.drop_weights(model)
        give_back()

    def _capabilities(self) -> list[Capability]:
        found: list[Capability] = ["completion", "logprobs", "seed"]
        if self._text.has_template:
            found.insert(0, "chat")
        if self._compiler is not None:
            found.append("guidance")
        if self._embedder is not None:
            found.append("embedding")
        if self._text.tool_calls is not None and self._text.has_template:
            found.append("tools")
        if self._setting.draft is not None:
            found.append("draft")
        if self._setting.cache_group is not None:
            found.append("quantised_kv")
        return found


def give_back() -> None:
    """Return what is no longer used to the device, and from the allocator to the system."""
    gc.collect()
    mx.clear_cache()
    if sys.platform == "linux":
        # The C library keeps freed pages for itself; after tens of megabytes of weights that is most of them.
        libc: Any = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def _draft(directory: Path, path: str, target: Loaded) -> Loaded:
    """Load the draft model, and check that it can draft for the target as loaded."""
    draft = Path(path).expanduser().resolve()
    loaded = load(draft, revision="")
    sizes = [int(model.config.get("vocab_size") or 0) for model in (target, loaded)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the draft model {draft} draws from {sizes[1]} tokens, and {directory} from {sizes[0]}",
            mend="take a draft model of the same family, with the same tokenizer",
        )
    for where, model in ((directory, target.model), (draft, loaded.model)):
        if not framework.always_trimmable(model):
            raise InputError(
                f"the model {where} keeps a window or a state, so a wrong proposal could not be taken back",
                mend="load it without a draft model",
            )
    return loaded


def _kept(model: Model, card: ModelCard, spec: LoadSpec, caches: Caches) -> KeptPrompts | None:
    if caches.prefix_bytes <= 0:
        return None
    name = f"{card.revision}-{spec.weight_bits or 'whole'}"
    return KeptPrompts(model, caches.prefix_bytes, caches.artifacts if caches.persist else None, name)


class _Measured(NamedTuple):
    """What one token tells: the width of the logits, the cache's bytes, and how many of its numbers share a scale.

    The last two are ``None`` where layers keep no plain keys and values, the last also where it does not divide.
    """

    width: int
    kv_bytes: int | None
    cache_group: int | None


def _measure(model: Model) -> _Measured:
    """Compute one token: also the model's first work, so what cannot be computed is known before a request is taken."""
    cache = framework.new_cache(model)
    logits = model(mx.array([[0]]), cache=cache)
    evaluate(logits)
    width = logits.shape[-1]
    if not framework.always_trimmable(model):
        return _Measured(width, None, None)
    kv_bytes = sum(_layer_bytes(layer) for layer in cache)
    if any(hasattr(layer, "caches") for layer in cache):
        return _Measured(width, kv_bytes, None)
    rows = {array.shape[3] for layer in cache for array in layer.state[:2]}
    group = next((group for group in _CACHE_GROUPS if all(row % group == 0 for row in rows)), None)
    return _Measured(width, kv_bytes, group)


def _layer_bytes(layer: LayerCache) -> int:
    inner: Any = getattr(layer, "caches", None)
    if inner is not None:
        return sum(_layer_bytes(one) for one in inner)
    keys, values, *_ = layer.state
    return sum(array.shape[1] * array.shape[3] * array.itemsize for array in (keys, values))

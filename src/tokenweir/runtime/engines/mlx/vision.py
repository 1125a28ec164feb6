"""The engine for models that see (MLX VLM: LLaVA, Qwen-VL, Phi vision and their relatives).

One sequence is in work at a time: these models remember, between steps, where the images of theirs stand.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenweir.core.errors import InputError
from tokenweir.ports.inference import DeviceMemory, InferenceEngine, LoadedModel, LoadSpec, ModelCard
from tokenweir.runtime.engines.mlx.engine import check_room, device_memory, read_options, set_limits
from tokenweir.runtime.engines.mlx.model import give_back
from tokenweir.runtime.engines.mlx.vision_model import VisionLanguageModel
from tokenweir.runtime.engines.registry import EngineOptions

_UNSUPPORTED: Final = "leave it out: models that see are loaded as they are"


class VisionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's own options: ``freed_bytes`` as for ``mlx``; ``max_pixels`` of one image, before it is decoded."""

    freed_bytes: int | None = None
    max_pixels: int = 32_000_000


def create(options: EngineOptions) -> InferenceEngine:
    """Return the engine. Raises ConfigError for options it does not have."""
    return VisionEngine(options)


class VisionEngine:
    """Runs models that see. Everything but a model's format is called on the thread that made the engine."""

    name = "mlx-vision"

    def __init__(self, options: EngineOptions) -> None:
        own = read_options(options, VisionOptions)
        self._max_pixels = own.max_pixels
        self._limit = set_limits(options.limit_bytes, own.freed_bytes)

    def load(self, spec: LoadSpec, card: ModelCard) -> LoadedModel:
        """Load a model whose files are described by ``card``.

        Raises:
            InputError: the files are not what this engine runs; the message names the file and the mend.
            NoMemoryError: its weights do not fit beside what is loaded.
        """
        if spec.weight_bits is not None:
            raise InputError(
                f"weight_bits is {spec.weight_bits} for {card.path}, which sees", mend=_UNSUPPORTED
            )
        if spec.draft is not None:
            raise InputError(f"{card.path} sees, and was given a draft model", mend=_UNSUPPORTED)
        check_room(card, self._limit)
        try:
            return VisionLanguageModel(card, self._max_pixels)
        except BaseException:
            give_back()
            raise

    def memory(self) -> DeviceMemory:
        """Return what the device holds now."""
        return device_memory(self._limit)

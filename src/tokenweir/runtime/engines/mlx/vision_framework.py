"""The names of MLX VLM that this engine uses, with types. Importing it takes a second and a lot of packages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import mlx.core as mx
from huggingface_hub import constants as _hub
from PIL import Image

from tokenweir.core.errors import InputError
from tokenweir.runtime.engines.mlx.arrays import evaluate
from tokenweir.runtime.engines.mlx.framework import Model, Processor, Sampler

# Whatever the packages below are asked for, nothing is fetched: a model is a directory that is there.
_hub.HF_HUB_OFFLINE = True

_utils: Any = importlib.import_module("mlx_vlm.utils")
_cache: Any = importlib.import_module("mlx_vlm.models.cache")
_autoregressive: Any = importlib.import_module("mlx_vlm.generate.ar")


class VisionModel(Protocol):
    """A model that sees: a language model, and a part that puts images among its embeddings."""

    language_model: Model
    config: Any

    def parameters(self) -> dict[str, Any]:
        """Return the weights, nested."""
        ...

    def set_dtype(self, dtype: mx.Dtype) -> None:
        """Change the type of floating-point weights."""
        ...


_NAMED: Final = frozenset({"input_ids", "pixel_values", "attention_mask", "token_type_ids"})


def load_model(path: Path) -> VisionModel:
    """Read a model from a directory, lazily. No foreign code is run: who asks for it was refused before."""
    return cast("VisionModel", _utils.load_model(path, lazy=True))


def load_processor(path: Path) -> Any:  # noqa: ANN401 - each family has its own
    """Read what makes inputs of texts and images."""
    offline = {"trust_remote_code": False, "local_files_only": True}
    processor = _utils.load_processor(path, add_detokenizer=False, **offline)
    own = _utils.load_image_processor(path)
    if own is not None:
        processor.image_processor = own
    return processor


def prepare(processor: Any, text: str, images: Sequence[Image.Image]) -> dict[str, Any]:  # noqa: ANN401
    """Return the model's inputs: ``input_ids``, ``attention_mask``, and the images in its family's own terms."""
    found: Any = _utils.prepare_inputs(processor, images=list(images), prompts=text, add_special_tokens=False)
    return {name: value for name, value in dict(found).items() if value is not None}


def tokens(
    model: VisionModel,
    inputs: Mapping[str, Any],
    *,
    max_tokens: int,
    sampler: Sampler,
    processors: Sequence[Processor],
) -> Iterator[tuple[int, mx.array]]:
    """Yield tokens and rows of log probabilities. The first of them reads the prompt."""
    rest = {name: value for name, value in inputs.items() if name not in _NAMED}
    generated: Any = _autoregressive.generate_step(
        inputs["input_ids"],
        model,
        inputs.get("pixel_values"),
        inputs.get("attention_mask"),
        max_tokens=max_tokens,
        # Given explicitly, or the model's own generation settings would step in.
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        sampler=sampler,
        logits_processors=list(processors),
        **rest,
    )
    return cast("Iterator[tuple[int, mx.array]]", generated)


def image_token(model: VisionModel) -> int | None:
    """Return the token that stands for an image, where the family has one."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(model.config, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return None


class Positions:
    """What a language model remembers between its steps about where images stand: of one sequence at a time.

    A sequence that pauses takes it along, so that another can be in work meanwhile.
    """

    _NAMES: Final = ("_rope_deltas", "_position_ids")

    def __init__(self, model: VisionModel) -> None:
        self._model: Any = model.language_model
        self._kept: dict[str, Any] = {name: None for name in self._NAMES if hasattr(self._model, name)}

    def restore(self) -> None:
        """Set what was saved; at first, nothing."""
        for name, value in self._kept.items():
            setattr(self._model, name, value)

    def save(self) -> None:
        """Keep what the model remembers now."""
        self._kept = {name: getattr(self._model, name) for name in self._kept}


def refuse_code(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a model that brings code of its own, which MLX VLM would run.

    Raises:
        InputError: it does.
    """
    if config.get("model_file"):
        raise InputError(
            f"{path / 'config.json'} asks for code of its own ({config['model_file']!r}), and no foreign code is run",
            mend="take a model of a known architecture",
        )


def logits_width(model: VisionModel) -> int:
    """Return how many tokens the model chooses from. Computes one, so what cannot be computed is known at load."""
    positions = Positions(model)
    positions.restore()
    language: Any = model.language_model
    output: Any = language(mx.array([[0]]), cache=_cache.make_prompt_cache(language))
    evaluate(output.logits)
    positions.restore()
    return int(output.logits.shape[-1])

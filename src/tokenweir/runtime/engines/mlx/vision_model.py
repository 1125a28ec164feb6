"""A model that sees, on the device, with everything that belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import msgspec

from tokenweir.core.errors import GuidanceError, InputError
from tokenweir.ports.inference import (
    Capability,
    Decoder,
    DecodeSequence,
    Embedder,
    Guidance,
    ModelCard,
    TextFormat,
    ToolCallFormat,
)
from tokenweir.runtime.engines.mlx import vision_framework as framework
from tokenweir.runtime.engines.mlx.decoder import Bounds
from tokenweir.runtime.engines.mlx.framework import Model, device_stream, drop_weights
from tokenweir.runtime.engines.mlx.images import read_image
from tokenweir.runtime.engines.mlx.loading import named, on_device
from tokenweir.runtime.engines.mlx.model import give_back
from tokenweir.runtime.engines.mlx.vision_decoder import VisionDecoder
from tokenweir.runtime.engines.mlx.vision_text import VisionText
from tokenweir.runtime.guidance.masks import GuideCompiler
from tokenweir.runtime.guidance.vocabulary import file_vocabulary
from tokenweir.runtime.models.configuration import FILE as CONFIG
from tokenweir.runtime.models.configuration import read_json
from tokenweir.runtime.models.tokenizers import FILE as TOKENIZER


class VisionLanguageModel:
    """A model that sees.

    Raises:
        InputError: the files are not what MLX VLM runs; the message names them.
    """

    def __init__(self, card: ModelCard, max_pixels: int) -> None:
        directory = Path(card.path)
        framework.refuse_code(directory, read_json(directory / CONFIG))
        self._text = VisionText(directory, card.architecture)
        self._max_pixels = max_pixels
        with device_stream(), named(directory):
            self._model = framework.load_model(directory)
            loaded = on_device(cast("Model", self._model), {}, directory)
            self._processor = framework.load_processor(directory)
            width = framework.logits_width(self._model)
        stops = frozenset(token for token in self._text.stop_tokens if token < width)
        self._compiler = (
            GuideCompiler(file_vocabulary(directory / TOKENIZER, width=width, ends=stops)) if stops else None
        )
        self._card = msgspec.structs.replace(
            card,
            vocabulary=width,
            weights_bytes=loaded.weights_bytes,
            capabilities=tuple(self._capabilities()),
        )
        bounds = Bounds(context_tokens=card.context_tokens, vocabulary=width, stop_tokens=stops)
        self._decoder: VisionDecoder | None = VisionDecoder(
            self._model, bounds, compiler=self._compiler, prepare=self._inputs
        )

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
        """None: models that see do not embed here."""
        return None

    def check_guidance(self, guidance: Guidance) -> None:
        """Compile ``guidance`` for this model's vocabulary, and keep it. Raises GuidanceError."""
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
            drop_weights(cast("Model", self._model))
        self._decoder = None
        self._processor = None
        give_back()

    def _capabilities(self) -> list[Capability]:
        found: list[Capability] = ["completion", "logprobs", "seed", "vision"]
        if self._text.has_template:
            found.insert(0, "chat")
        if self._compiler is not None:
            found.append("guidance")
        if self._text.tool_calls is not None and self._text.has_template:
            found.append("tools")
        return found

    def _inputs(self, sequence: DecodeSequence) -> dict[str, Any]:
        """Return a prompt as the model reads it.

        Raises:
            InputError: an image is broken or too large, or there are not as many as the prompt has places for.
        """
        if not sequence.images:
            tokens = mx.array([list(sequence.tokens)])
            return {"input_ids": tokens, "attention_mask": mx.ones_like(tokens)}
        images = [read_image(data, max_pixels=self._max_pixels) for data in sequence.images]
        text = self._text.text_of(sequence.tokens)
        place = framework.image_token(self._model)
        places = sequence.tokens.count(place) if place is not None else len(images)
        if places != len(images):
            raise InputError(
                f"there are {len(images)} images, and the prompt has places for {places}",
                mend="send images in messages, which the chat template places",
            )
        try:
            return framework.prepare(self._processor, text, images)
        except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            raise InputError(f"the images cannot be prepared: {error}", mend="send other images") from error

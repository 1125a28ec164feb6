"""A sequence with images, step by step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import mlx.core as mx

from tokenweir.core.errors import InputError
from tokenweir.ports.inference import DecodeSequence, Drawn
from tokenweir.runtime.engines.mlx import vision_framework as framework
from tokenweir.runtime.engines.mlx.framework import Processor, Sampler
from tokenweir.runtime.engines.mlx.rows import Finish, Row
from tokenweir.runtime.engines.mlx.sampling import draw, likeliest

_SEED_BITS: Final = 63


class VisionRun:
    """A prompt with images in work; ``prepare`` makes the model's inputs of it. Its first token reads it whole."""

    def __init__(
        self,
        row: Row,
        model: framework.VisionModel,
        *,
        context_tokens: int,
        prepare: Callable[[DecodeSequence], dict[str, Any]],
    ) -> None:
        self.row = row
        self._model = model
        self._context_tokens = context_tokens
        self._prepare = prepare
        self._positions = framework.Positions(model)
        self._tokens: Iterator[tuple[int, mx.array]] | None = None
        self._first: tuple[int, mx.array] | None = None
        seed = row.sequence.decoding.seed
        self._key = mx.random.key(seed if seed is not None else random.getrandbits(_SEED_BITS))

    @property
    def reading(self) -> bool:
        """Whether the prompt is still to be read."""
        return self._tokens is None

    def read(self, tokens: int) -> None:  # noqa: ARG002 - images and text are read together
        """Read the whole prompt.

        Raises:
            InputError: an image is broken or too large, or does not fit into the context with the rest.
        """
        row = self.row
        inputs = self._prepare(row.sequence)
        row.prompt_tokens = int(inputs["input_ids"].shape[-1])
        if row.prompt_tokens + row.left > self._context_tokens:
            raise InputError(
                f"the prompt is {row.prompt_tokens} tokens with its images, and with {row.left} of answer more than "
                f"the context's {self._context_tokens}",
                mend="send smaller images or less text, or ask for fewer tokens",
            )
        self._tokens = framework.tokens(
            self._model,
            inputs,
            max_tokens=row.left,
            sampler=self._sampler(),
            processors=[self._whole(process) for process in row.processors],
        )
        self._first = self._next(self._tokens)

    def draw(self) -> None:
        """Draw the next token."""
        row = self.row
        if self._tokens is None:
            return
        token, logprobs = self._first or self._next(self._tokens)
        self._first = None
        row.drawn += 1
        stopped = token in row.stops
        finish: Finish = "stop" if stopped else "length" if row.left < 1 else ""
        row.ended = bool(finish)
        failed = row.failed()
        if failed is not None:
            row.ended = True
            row.pending.append(failed)
            return
        asked = row.sequence.decoding.logprobs
        if stopped or asked is None:
            row.pending.append(Drawn(sequence=row.id, token=-1 if stopped else token, finish=finish))
            return
        logprob, alternatives = likeliest(logprobs, token, asked)
        row.pending.append(
            Drawn(sequence=row.id, token=token, logprob=logprob, alternatives=alternatives, finish=finish)
        )

    def _next(self, tokens: Iterator[tuple[int, mx.array]]) -> tuple[int, mx.array]:
        self._positions.restore()
        found = next(tokens)
        self._positions.save()
        return found

    def _sampler(self) -> Sampler:
        decoding = self.row.sequence.decoding

        def sample(logprobs: mx.array) -> mx.array:
            self._key, own = mx.random.split(self._key)
            return draw(logprobs, decoding, own)

        return sample

    def _whole(self, process: Processor) -> Processor:
        """Return a processor that is shown the prompt as it was sent, whatever part of it MLX VLM shows."""
        prompt = mx.array(list(self.row.prompt))
        shown: list[int] = []

        def processed(context: mx.array, logits: mx.array) -> mx.array:
            if not shown:
                shown.append(context.shape[0])
            return process(mx.concatenate([prompt, context[shown[0] :].astype(prompt.dtype)]), logits)

        return processed

"""Decodes sequences with images, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenweir.core.errors import InputError, WeirError
from tokenweir.ports.inference import Broken, DecodeSequence, StepEvent, StepLimits
from tokenweir.runtime.engines.mlx.decoder import Bounds
from tokenweir.runtime.engines.mlx.exclusive import ExclusiveLane
from tokenweir.runtime.engines.mlx.framework import device_stream
from tokenweir.runtime.engines.mlx.guides import Compiler
from tokenweir.runtime.engines.mlx.rows import Row, broken, check
from tokenweir.runtime.engines.mlx.vision_framework import VisionModel
from tokenweir.runtime.engines.mlx.vision_run import VisionRun


class VisionDecoder:
    """Decodes sequences in the order they came; one that is held lets the next go first.

    ``prepare`` makes the model's inputs of a sequence.
    """

    def __init__(
        self,
        model: VisionModel,
        bounds: Bounds,
        *,
        compiler: Compiler | None,
        prepare: Callable[[DecodeSequence], dict[str, Any]],
    ) -> None:
        self._bounds = bounds
        self._compiler = compiler
        self._refused: list[Broken] = []

        def begin(row: Row) -> VisionRun:
            return VisionRun(row, model, context_tokens=bounds.context_tokens, prepare=prepare)

        self._lane = ExclusiveLane(begin)

    def insert(self, sequences: Sequence[DecodeSequence]) -> None:
        """Take sequences on; what cannot be decoded breaks in the next step."""
        for sequence in sequences:
            try:
                check(
                    sequence, context_tokens=self._bounds.context_tokens, vocabulary=self._bounds.vocabulary
                )
                if sequence.decoding.use_draft or sequence.decoding.kv_bits is not None:
                    raise InputError(
                        "use_draft and kv_bits are not for models that see", mend="leave them out"
                    )
                self._lane.insert(Row(sequence, self._bounds.stop_tokens, self._compiler))
            except WeirError as error:
                self._refused.append(broken(sequence.sequence, error))

    def remove(self, sequences: Sequence[int]) -> None:
        """Forget sequences and free their cache."""
        gone = set(sequences)
        self._refused = [event for event in self._refused if event.sequence not in gone]
        self._lane.remove(sequences)

    def step(self, limits: StepLimits) -> Sequence[StepEvent]:
        """Advance the first sequence that is not held: its whole prompt, or a token."""
        events: list[StepEvent] = list(self._refused)
        self._refused.clear()
        if len(self._lane):
            with device_stream():
                events += self._lane.step(limits)
        return events

    def close(self) -> None:
        """Forget everything."""
        self._lane.close()

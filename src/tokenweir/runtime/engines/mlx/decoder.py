"""The two lanes of a model behind one port: each step advances both."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from tokenweir.core.errors import InputError, WeirError
from tokenweir.ports.inference import Broken, DecodeSequence, StepEvent, StepLimits
from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.batch import BatchLane
from tokenweir.runtime.engines.mlx.exclusive import ExclusiveLane, Setting, TextRun
from tokenweir.runtime.engines.mlx.guides import Compiler
from tokenweir.runtime.engines.mlx.kept_prompts import KeptPrompts
from tokenweir.runtime.engines.mlx.rows import Row, broken, check


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a sequence must keep to, and what ends it."""

    context_tokens: int
    vocabulary: int
    stop_tokens: Collection[int]


class MlxDecoder:
    """Decodes sequences in the lane they ask for; seeds, drafts and quantised caches always go to the exclusive one."""

    def __init__(
        self, setting: Setting, bounds: Bounds, *, kept: KeptPrompts | None, compiler: Compiler | None
    ) -> None:
        self._setting = setting
        self._bounds = bounds
        self._kept = kept
        self._compiler = compiler
        self._batch = BatchLane(setting.model, kept)
        self._exclusive = ExclusiveLane(lambda row: TextRun(row, setting))
        self._refused: list[Broken] = []

    @property
    def prefix_bytes(self) -> int:
        """Bytes that kept prompts take now."""
        return self._kept.used_bytes if self._kept is not None else 0

    def insert(self, sequences: Sequence[DecodeSequence]) -> None:
        """Take sequences on; what cannot be decoded breaks in the next step."""
        for sequence in sequences:
            try:
                self._insert(sequence)
            except WeirError as error:
                self._refused.append(broken(sequence.sequence, error))

    def remove(self, sequences: Sequence[int]) -> None:
        """Forget sequences and free their slots and cache."""
        gone = set(sequences)
        self._refused = [event for event in self._refused if event.sequence not in gone]
        with framework.device_stream():
            self._batch.remove(sequences)
            self._exclusive.remove(sequences)

    def step(self, limits: StepLimits) -> Sequence[StepEvent]:
        """Advance the batch by a token, and the sequence in the exclusive lane by a token or a piece of its prompt."""
        events: list[StepEvent] = list(self._refused)
        self._refused.clear()
        with framework.device_stream():
            if len(self._batch):
                events += self._batch.step(limits)
            if len(self._exclusive):
                events += self._exclusive.step(limits)
        return events

    def close(self) -> None:
        """Forget everything; kept prompts go to disk where there is a place for them."""
        with framework.device_stream():
            self._batch.close()
            if self._kept is not None:
                self._kept.close()

    def _insert(self, sequence: DecodeSequence) -> None:
        decoding = sequence.decoding
        check(sequence, context_tokens=self._bounds.context_tokens, vocabulary=self._bounds.vocabulary)
        if sequence.images:
            raise InputError("this model does not see", mend="leave the images out")
        if decoding.use_draft and self._setting.draft is None:
            raise InputError(
                "use_draft is asked, and the model was loaded without a draft model", mend="leave it out"
            )
        if decoding.kv_bits is not None and self._setting.cache_group is None:
            raise InputError("the cache of this model cannot be quantised", mend="leave kv_bits out")
        row = Row(sequence, self._bounds.stop_tokens, self._compiler)
        apart = decoding.seed is not None or decoding.kv_bits is not None or decoding.use_draft
        if apart or sequence.lane == "exclusive":
            self._exclusive.insert(row)
        else:
            self._batch.insert(row)

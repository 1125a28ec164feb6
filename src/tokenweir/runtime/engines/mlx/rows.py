"""A sequence on its way through a lane: what was asked, how far it is, and what was drawn but not yet handed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Literal

from tokenweir.core.errors import EngineError, GuidanceError, InputError, WeirError
from tokenweir.ports.inference import Broken, DecodeSequence, Drawn, Prefilled
from tokenweir.runtime.engines.mlx.framework import Processor
from tokenweir.runtime.engines.mlx.guides import Compiler, GuideProcessor
from tokenweir.runtime.engines.mlx.sampling import processors

Finish = Literal["", "stop", "length"]


class Row:
    """One sequence. ``drawn`` counts its tokens, ``cached`` those of its prompt that were computed before.

    Raises:
        GuidanceError: its guidance cannot be obeyed.
    """

    __slots__ = (
        "cached",
        "drawn",
        "ended",
        "guide",
        "id",
        "pending",
        "processors",
        "prompt",
        "prompt_tokens",
        "sequence",
        "stops",
    )

    def __init__(
        self, sequence: DecodeSequence, stop_tokens: Collection[int], compiler: Compiler | None
    ) -> None:
        decoding = sequence.decoding
        self.id = sequence.sequence
        self.sequence = sequence
        self.prompt = sequence.tokens
        # With images it is more than there are tokens: each stands for many.
        self.prompt_tokens = len(sequence.tokens)
        self.guide: GuideProcessor | None = None
        if decoding.guidance is not None:
            if compiler is None:
                raise GuidanceError("this model cannot be guided", mend="leave guidance out")
            self.guide = GuideProcessor(compiler.compile(decoding.guidance), len(self.prompt), stop_tokens)
        # What is guided has an end of its own, so it ends whatever was asked.
        ends = not decoding.ignore_eos or self.guide is not None
        self.stops: tuple[int, ...] = tuple(sorted(stop_tokens)) if ends else ()
        self.processors: list[Processor] = processors(decoding, len(self.prompt), stop_tokens, self.guide)
        self.cached = 0
        self.drawn = 0
        self.ended = False
        self.pending: deque[Drawn | Broken] = deque()

    @property
    def left(self) -> int:
        """Tokens that may still be drawn."""
        return self.sequence.decoding.max_tokens - self.drawn

    def prefilled(self) -> Prefilled:
        """Return the event that says the prompt is read."""
        return Prefilled(sequence=self.id, prompt_tokens=self.prompt_tokens, cached_tokens=self.cached)

    def failed(self) -> Broken | None:
        """Return the event that ends the sequence because it left its guide, if it did."""
        error = self.guide.error if self.guide is not None else None
        return broken(self.id, error) if error is not None else None


def broken(sequence: int, error: BaseException) -> Broken:
    """Return the event for a sequence that ended in an error."""
    if isinstance(error, WeirError):
        return Broken(sequence=sequence, code=error.code, message=str(error), retryable=error.retryable)
    return Broken(sequence=sequence, code=EngineError.code, message=f"{type(error).__name__}: {error}")


def check(sequence: DecodeSequence, *, context_tokens: int, vocabulary: int) -> None:
    """Check what every lane needs.

    Raises:
        InputError: the sequence cannot be decoded by any lane.
    """
    tokens, decoding = sequence.tokens, sequence.decoding
    if not tokens:
        raise InputError("the prompt has no tokens", mend="send at least one")
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        odd = next(token for token in tokens if not 0 <= token < vocabulary)
        raise InputError(
            f"token {odd} is not in the vocabulary of {vocabulary}", mend="send the model's own tokens"
        )
    if decoding.max_tokens < 1:
        raise InputError(f"max_tokens is {decoding.max_tokens}", mend="ask for at least one token")
    if len(tokens) + decoding.max_tokens > context_tokens:
        raise InputError(
            f"{len(tokens)} tokens of prompt and {decoding.max_tokens} of answer are more than the context's "
            f"{context_tokens}",
            mend="shorten the prompt, or ask for fewer tokens",
        )
    if decoding.guidance is not None and decoding.min_tokens > 0:
        raise InputError(
            "min_tokens is asked of a guided answer", mend="a guide says itself when it is whole"
        )
    odd = next((token for token in decoding.logit_bias if not 0 <= token < vocabulary), None)
    if odd is not None:
        raise InputError(
            f"logit_bias names token {odd}, and the vocabulary has {vocabulary}", mend="leave it out"
        )

"""Drives a decoder of the port to the end of its sequences."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from tokenweir.ports.inference import (
    Broken,
    Decoder,
    DecodeSequence,
    Decoding,
    Drawn,
    LoadedModel,
    Prefilled,
    StepEvent,
    StepLimits,
)

LIMITS = StepLimits(batch=32, prefill_tokens=256)
MOST_STEPS = 4000
GREEDY = Decoding(max_tokens=16, temperature=0.0)


class Answer(msgspec.Struct):
    """All events of one sequence."""

    events: list[StepEvent]

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.drawn if event.token >= 0]

    @property
    def drawn(self) -> list[Drawn]:
        return [event for event in self.events if isinstance(event, Drawn)]

    @property
    def finish(self) -> str:
        return self.drawn[-1].finish if self.drawn else ""

    @property
    def prefilled(self) -> Prefilled:
        (found,) = [event for event in self.events if isinstance(event, Prefilled)]
        return found

    @property
    def broken(self) -> Broken:
        (found,) = [event for event in self.events if isinstance(event, Broken)]
        return found


def decoder_of(model: LoadedModel) -> Decoder:
    assert model.decoder is not None
    return model.decoder


def run(decoder: Decoder, sequences: Sequence[DecodeSequence], limits: StepLimits = LIMITS) -> list[Answer]:
    """Decode sequences to their ends, and return their events in the order asked."""
    decoder.insert(sequences)
    return finish(decoder, [sequence.sequence for sequence in sequences], limits)


def finish(decoder: Decoder, sequences: Collection[int], limits: StepLimits = LIMITS) -> list[Answer]:
    """Step until the sequences have ended, and return their events in the order asked."""
    answers = {sequence: Answer([]) for sequence in sequences}
    left = set(sequences)
    for _ in range(MOST_STEPS):
        if not left:
            return list(answers.values())
        for event in decoder.step(limits):
            if event.sequence in answers:
                answers[event.sequence].events.append(event)
                if isinstance(event, Broken) or (isinstance(event, Drawn) and event.finish):
                    left.discard(event.sequence)
    raise AssertionError(f"sequences {sorted(left)} have not ended")


def one(decoder: Decoder, tokens: Sequence[int], decoding: Decoding = GREEDY, **more: Any) -> Answer:  # noqa: ANN401
    """Decode one sequence by itself."""
    sequence = DecodeSequence(sequence=1_000_000, tokens=tuple(tokens), decoding=decoding)
    (answer,) = run(decoder, [msgspec.structs.replace(sequence, **more)])
    return answer


def asked(number: int, tokens: Sequence[int], decoding: Decoding = GREEDY) -> DecodeSequence:
    return DecodeSequence(sequence=number, tokens=tuple(tokens), decoding=decoding)

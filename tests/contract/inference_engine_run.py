"""What the tests of inference engines share: a subject, and a decoder that is stepped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import pytest

from tokenweir.ports.inference import (
    Broken,
    Capability,
    Decoder,
    DecodeSequence,
    Decoding,
    Drawn,
    InferenceEngine,
    LoadedModel,
    LoadSpec,
    ModelCard,
    Prefilled,
    StepEvent,
    StepLimits,
)

MOST_STEPS = 4000
LIMITS = StepLimits(batch=64, prefill_tokens=256)
TEXTS = (
    "The weir holds the river back.",
    "Count from one to ten, please.",
    "x",
    "A longer question about lakes, mills and the tokens that flow from one to the other, and what it all costs.",
    "Wörter mit Umlauten ☃",
    "def add(a, b):\n    return",
    "What is two and two?",
    "Once upon a time there was a gauge that measured rain.",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "mood": {"enum": ["calm", "wild"]},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "mood", "ok"],
    "additionalProperties": False,
}


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, and a model for it. The engine keeps prompts: at least a MiB of them."""

    engine: InferenceEngine
    spec: LoadSpec
    card: ModelCard


class Run:
    """Steps a decoder and keeps the events of each sequence."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.events: dict[int, list[StepEvent]] = {}

    def step(self, limits: StepLimits = LIMITS) -> Sequence[StepEvent]:
        events = self.decoder.step(limits)
        for event in events:
            self.events.setdefault(event.sequence, []).append(event)
        return events

    def finish(self, *sequences: int, limits: StepLimits = LIMITS) -> None:
        for _ in range(MOST_STEPS):
            if all(self.ended(sequence) for sequence in sequences):
                return
            self.step(limits)
        pytest.fail(f"{sequences} did not end within {MOST_STEPS} steps")

    def ended(self, sequence: int) -> bool:
        found = self.events.get(sequence)
        return bool(found) and is_end(found[-1])

    def drawn(self, sequence: int) -> list[Drawn]:
        return [event for event in self.events.get(sequence, ()) if isinstance(event, Drawn)]

    def tokens(self, sequence: int) -> list[int]:
        return [event.token for event in self.drawn(sequence) if event.token >= 0]


def is_end(event: StepEvent) -> bool:
    return isinstance(event, Broken) or (isinstance(event, Drawn) and event.finish != "")


class EngineTests:
    """What every class of tests starts from."""

    @pytest.fixture
    def subject(self) -> Subject:
        raise NotImplementedError

    @pytest.fixture
    def model(self, subject: Subject) -> Iterator[LoadedModel]:
        model = subject.engine.load(subject.spec, subject.card)
        yield model
        model.close()

    @pytest.fixture
    def decoder(self, model: LoadedModel) -> Decoder:
        if model.decoder is None:
            pytest.skip("this model only embeds")
        return model.decoder


def require(model: LoadedModel, capability: Capability) -> None:
    if capability not in model.card.capabilities:
        pytest.skip(f"this model has no {capability}")


def some_prompts(model: LoadedModel) -> list[list[int]]:
    return [list(model.format.encode(text)) for text in TEXTS]


def long_prompt(model: LoadedModel) -> list[int]:
    tokens = list(model.format.encode(" ".join(TEXTS)))
    return (tokens * (1 + 200 // len(tokens)))[: min(200, model.card.context_tokens // 2)]


def task(
    number: int,
    tokens: Sequence[int],
    *,
    lane: str = "batch",
    use_prefix_cache: bool = True,
    **decoding: object,
) -> DecodeSequence:
    fields = {"max_tokens": 60, "temperature": 0.0, **decoding}
    return DecodeSequence(
        sequence=number,
        tokens=tuple(tokens),
        decoding=Decoding(**fields),  # pyright: ignore[reportArgumentType]
        lane="exclusive" if lane == "exclusive" else "batch",
        use_prefix_cache=use_prefix_cache,
    )


def answer_alone(
    decoder: Decoder, number: int, prompt: Sequence[int], *, use_prefix_cache: bool = True, **decoding: object
) -> list[int]:
    run = Run(decoder)
    decoder.insert([task(number, prompt, lane="batch", use_prefix_cache=use_prefix_cache, **decoding)])
    run.finish(number)
    return run.tokens(number)


def text_of(model: LoadedModel, tokens: Sequence[int]) -> str:
    detokenizer = model.format.detokenizer()
    return "".join(map(detokenizer.add, tokens)) + detokenizer.finish()


def cached_tokens(run: Run, sequence: int) -> int:
    first = run.events[sequence][0]
    assert isinstance(first, Prefilled)
    return first.cached_tokens

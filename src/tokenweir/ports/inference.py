"""What an inference engine must offer to be served by the runtime: load, decode step by step, embed, and speak text.

Everything here is synchronous and is called from one thread, the one that owns the device, except
:class:`TextFormat`, which must be safe to call from another thread at the same time. Values that cross the port
are plain: no arrays, no handles. ``docs/engines.md`` tells how to add an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from tokenweir.core.requests import Json, Message, Tool

GuidanceKind = Literal["json_schema", "regex", "grammar", "choice"]

Capability = Literal[
    "chat",
    "completion",
    "embedding",
    "vision",
    "tools",
    "guidance",
    "logprobs",
    "draft",
    "quantised_kv",
    "seed",
]
"""What a loaded model can be asked for; a request for anything else is refused by name."""

Lane = Literal["batch", "exclusive"]
"""Continuous batching, or one sequence at a time for what a batch cannot do."""


class Guidance(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer's text must match. ``value`` is JSON text for ``json_schema`` and for ``choice`` (a list)."""

    kind: GuidanceKind
    value: str


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model to load: a directory, and how.

    ``weight_bits`` quantises the weights at load; ``context_tokens`` lowers the model's own limit.
    ``draft`` is the directory of a draft model for speculation.
    """

    name: str
    path: str
    weight_bits: Literal[4, 8] | None = None
    context_tokens: int | None = None
    draft: str | None = None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model: from its files before loading, and confirmed by the engine after.

    ``revision`` is the SHA-256 of weights and configuration, lower-case hex. ``kv_bytes_per_token`` is the cache
    that one token of one sequence takes; ``weights_bytes`` the weights in memory, draft model included.
    """

    name: str
    path: str
    revision: str
    architecture: str
    context_tokens: int
    vocabulary: int
    weights_bytes: int
    kv_bytes_per_token: int
    weight_bits: int | None = None
    draft: str | None = None
    capabilities: tuple[Capability, ...] = ()


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence is drawn; every field is resolved, none is left to the engine.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 switch themselves off. ``logprobs`` is the number of
    alternatives to report with each token, ``None`` for no log probabilities at all. ``stop_tokens`` end the
    sequence and are not reported as tokens unless ``ignore_eos``. ``kv_bits`` quantises this sequence's cache.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = {}
    seed: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    guidance: Guidance | None = None
    kv_bits: Literal[4, 8] | None = None
    use_draft: bool = False
    draft_tokens: int = 3


class DecodeSequence(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to decode: ``sequence`` is unique within the engine, ``images`` are encoded files in order.

    ``use_prefix_cache`` false neither reads nor writes the prefix cache.
    """

    sequence: int
    tokens: tuple[int, ...]
    decoding: Decoding
    images: tuple[bytes, ...] = ()
    lane: Lane = "batch"
    use_prefix_cache: bool = True


class StepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one step may do. ``held`` sequences keep their place and cache, and do not advance."""

    batch: int
    prefill_tokens: int
    held: frozenset[int] = frozenset()


class Prefilled(msgspec.Struct, frozen=True, kw_only=True, tag="prefilled"):
    """The whole prompt is in the cache; ``cached_tokens`` of its ``prompt_tokens`` were there before."""

    sequence: int
    prompt_tokens: int
    cached_tokens: int = 0


class Drawn(msgspec.Struct, frozen=True, kw_only=True, tag="drawn"):
    """A token was drawn. ``token`` is -1 where the end adds none (a stop token, which is not part of the answer).

    ``logprob`` is the token's natural-log probability, ``alternatives`` the most probable tokens with theirs.
    ``drafted`` marks a token that the draft model proposed; ``proposed`` counts, on the one token of a round that
    is reported first, all that it proposed in that round. ``finish`` is set with the sequence's last event.
    """

    sequence: int
    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    drafted: bool = False
    proposed: int = 0
    finish: Literal["", "stop", "length"] = ""


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    """The sequence ended in an error: ``code`` and ``message`` as in :mod:`tokenweir.core.errors`."""

    sequence: int
    code: str
    message: str
    retryable: bool = False


StepEvent: TypeAlias = Prefilled | Drawn | Broken


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on the device: in use by arrays, kept by the allocator's cache, and the most the engine may take."""

    active_bytes: int
    cached_bytes: int
    limit_bytes: int


class Detokenizer(Protocol):
    """Turns the tokens of one answer into text as they come."""

    def add(self, token: int) -> str:
        """Return the text that ``token`` completes; empty while a character is still in pieces."""
        ...

    def finish(self) -> str:
        """Return what is left at the end; pieces of a character become U+FFFD."""
        ...


class Markers(msgspec.Struct, frozen=True, kw_only=True):
    """The strings that fence reasoning and tool calls in this model's answers; empty where it has none."""

    think: tuple[str, str] = ("", "")
    tool: tuple[str, str] = ("", "")


class TextFormat(Protocol):
    """A model's tokenizer and chat format. Safe to use beside the device thread."""

    def encode(self, text: str, *, special: bool = True) -> Sequence[int]:
        """Return the token ids of ``text``; ``special`` adds what the model wants at the beginning."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Json]) -> str:
        """Return the prompt that the chat template makes. Raises SpecError where it has none or refuses."""
        ...

    def detokenizer(self) -> Detokenizer:
        """Return a fresh detokenizer."""
        ...

    def markers(self) -> Markers:
        """Return the fences of this model's answers."""
        ...


class ToolCallFormat(Protocol):
    """How a model writes the inside of a tool call."""

    def parse(self, text: str, tools: Sequence[Tool]) -> Sequence[tuple[str, str]]:
        """Return (name, JSON arguments) for each call in ``text``. Raises ProtocolError for what is none."""
        ...


class Decoder(Protocol):
    """Decodes many sequences, a step at a time."""

    def insert(self, sequences: Sequence[DecodeSequence]) -> None:
        """Take sequences on. What cannot be decoded becomes a ``Broken`` event of the next step, never a raise."""
        ...

    def remove(self, sequences: Sequence[int]) -> None:
        """Forget sequences and free their slots and cache; unknown ones are ignored."""
        ...

    def step(self, limits: StepLimits) -> Sequence[StepEvent]:
        """Advance by one step: a piece of prefill, one token for each running sequence, or both. In order."""
        ...


class Embedder(Protocol):
    """Turns token sequences into vectors."""

    def embed(self, inputs: Sequence[Sequence[int]]) -> Sequence[Sequence[float]]:
        """Return one vector of unit length for each input."""
        ...


class LoadedModel(Protocol):
    """A model on the device."""

    @property
    def card(self) -> ModelCard:
        """What it is, as loaded."""
        ...

    @property
    def format(self) -> TextFormat:
        """Its tokenizer and chat format."""
        ...

    @property
    def tool_calls(self) -> ToolCallFormat | None:
        """How it writes tool calls; ``None`` when it does not know tools."""
        ...

    @property
    def decoder(self) -> Decoder | None:
        """Its decoder; ``None`` for a model that only embeds."""
        ...

    @property
    def embedder(self) -> Embedder | None:
        """Its embedder, or ``None``."""
        ...

    def close(self) -> None:
        """Give the device's memory back. Nothing of the model may be used after."""
        ...


@runtime_checkable
class GuidanceChecker(Protocol):
    """A :class:`LoadedModel` that can say before decoding whether it can obey. Safe beside the device thread."""

    def check_guidance(self, guidance: Guidance) -> None:
        """Compile ``guidance`` for this model's vocabulary, and keep what it may use again.

        Raises:
            GuidanceError: it cannot be obeyed; the message names what in it cannot.
        """
        ...


@runtime_checkable
class PrefixCaching(Protocol):
    """A :class:`Decoder` that keeps the caches of prompts it has read."""

    @property
    def prefix_bytes(self) -> int:
        """Bytes that kept prompts take now."""
        ...


class InferenceEngine(Protocol):
    """A way of running models: ``mlx``, ``sim``."""

    @property
    def name(self) -> str:
        """The name used in settings."""
        ...

    def load(self, spec: LoadSpec, card: ModelCard) -> LoadedModel:
        """Load a model whose files are described by ``card``.

        Raises:
            InputError: the files are not what this engine runs; the message names the file and the mend.
            ResourceError: it does not fit.
        """
        ...

    def memory(self) -> DeviceMemory:
        """Return what the device holds now."""
        ...

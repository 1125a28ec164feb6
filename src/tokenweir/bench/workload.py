"""What a run asks, request by request: samples in a seeded order, as requests of the engine-neutral model."""

from __future__ import annotations

from functools import cached_property
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.corpora.corpus import Corpus
from tokenweir.bench.tags import Tagger
from tokenweir.bench.tokenizers import count_tokens
from tokenweir.core.corpus import Sample, message_text
from tokenweir.core.requests import GenerateRequest, Json, Kind, Message, Sampling
from tokenweir.core.seeds import generator
from tokenweir.ports.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS: Final = 256
"""The bound of an answer where neither the sample nor the scenario nor ``--max-tokens`` states one."""

MAX_COUNTED_CHARACTERS: Final = 16_000_000
"""A corpus with more text than this is left to the server's counts: counting it would delay the start."""


class Order(NamedTuple):
    """Which sample each request of a load asks, and how often the load asked it before; int32 both."""

    sample: npt.NDArray[np.int32]
    repeat: npt.NDArray[np.int32]


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """How samples are asked. ``sampling.max_tokens`` is the user's own bound: it caps what a sample asks for.

    ``shuffled`` draws a new order in each cycle through the corpus; else samples come in the corpus's order.
    """

    kind: Kind
    model: str
    sampling: Sampling = Sampling()
    stream: bool = True
    shuffled: bool = True
    unique_prompts: bool = False
    seed: int = 0
    extra: dict[str, Json] = {}


class Workload:
    """A corpus and how it is asked. Requests are the same in every process that builds it alike."""

    def __init__(self, corpus: Corpus, asking: Asking, tokenizer: Tokenizer) -> None:
        self.corpus = corpus
        self.asking = asking
        self.tokenizer = tokenizer
        self._tagger = Tagger(tokenizer, seed=asking.seed) if asking.unique_prompts else None
        self._reply_tokens: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.corpus)

    @cached_property
    def input_tokens(self) -> npt.NDArray[np.int32]:
        """Tokens of each sample's text as counted here, int32; those of a chat template are not among them.

        Exact or estimated as ``tokenizer.exact`` says; -1 throughout for a corpus too large to count.
        """
        known = self.corpus.input_tokens
        if known is not None:
            return known
        samples = self.corpus.samples
        if sum(len(sample.text) for sample in samples) > MAX_COUNTED_CHARACTERS:
            return np.full(len(samples), -1, dtype=np.int32)
        texts = [self._tag(0, index, 0) + sample.text for index, sample in enumerate(samples)]
        return count_tokens(self.tokenizer, texts)

    def output_tokens(self, sample_index: int) -> int | None:
        """Return the most tokens that may answer a sample; ``None`` for embeddings."""
        if self.asking.kind == "embedding":
            return None
        sample, cap = self.corpus.samples[sample_index], self.asking.sampling.max_tokens
        own = sample.max_tokens
        if own is None and self.corpus.sized_by_replies and sample.expected:
            own = self._reply(sample_index, sample.expected)
        if own is None:
            return DEFAULT_MAX_TOKENS if cap is None else cap
        return own if cap is None else min(own, cap)

    def request(self, sample_index: int, repeat: int, load: int = 0) -> GenerateRequest:
        """Return the request for a sample. ``repeat`` and ``load`` matter to unique prompts only."""
        sample = self.corpus.samples[sample_index]
        tag = self._tag(load, sample_index, repeat)
        asking = self.asking
        sampling = msgspec.structs.replace(asking.sampling, max_tokens=self.output_tokens(sample_index))
        match asking.kind:
            case "chat":
                return GenerateRequest(
                    kind="chat",
                    model=asking.model,
                    messages=_tagged(_messages(sample), tag),
                    sampling=sampling,
                    stream=asking.stream,
                    extra=asking.extra,
                )
            case "completion":
                return GenerateRequest(
                    kind="completion",
                    model=asking.model,
                    prompt=tag + _transcript(sample),
                    sampling=sampling,
                    stream=asking.stream,
                    extra=asking.extra,
                )
            case "embedding":
                return GenerateRequest(
                    kind="embedding",
                    model=asking.model,
                    inputs=(tag + sample.text,),
                    stream=False,
                    extra=asking.extra,
                )

    def order(self, n: int, seed: int, load: int) -> Order:
        """Return which samples the first ``n`` requests of a load ask: each once before any comes again.

        A shorter order is the beginning of a longer one.
        """
        size = len(self.corpus)
        cycles = -(-n // size)
        repeat = np.repeat(np.arange(cycles, dtype=np.int32), size)[:n]
        if not self.asking.shuffled:
            return Order(np.tile(np.arange(size, dtype=np.int32), cycles)[:n], repeat)
        rng = generator(seed, "order", load)
        order = [rng.permutation(size).astype(np.int32) for _ in range(cycles)]
        return Order(np.concatenate(order)[:n] if order else np.empty(0, dtype=np.int32), repeat)

    def _tag(self, load: int, sample_index: int, repeat: int) -> str:
        if self._tagger is None:
            return ""
        return self._tagger.tag(load, sample_index, repeat)

    def _reply(self, sample_index: int, expected: str) -> int:
        if sample_index not in self._reply_tokens:
            self._reply_tokens[sample_index] = max(1, len(self.tokenizer.encode(expected)))
        return self._reply_tokens[sample_index]


def _messages(sample: Sample) -> tuple[Message, ...]:
    return sample.messages or (Message(role="user", content=sample.prompt or ""),)


def _tagged(messages: tuple[Message, ...], tag: str) -> tuple[Message, ...]:
    """Put the tag at the start of the first message, because a prefix cache compares from there."""
    if not tag:
        return messages
    first, *rest = messages
    content = (
        ({"type": "text", "text": tag}, *first.content)
        if isinstance(first.content, tuple)
        else tag + (first.content or "")
    )
    return (msgspec.structs.replace(first, content=content), *rest)


def _transcript(sample: Sample) -> str:
    """Return the prompt of a completion; a conversation as named turns with the answer's name last."""
    if sample.prompt is not None:
        return sample.prompt
    turns = [f"{message.role.capitalize()}: {message_text(message)}" for message in sample.messages]
    return "\n".join([*turns, "Assistant:"])

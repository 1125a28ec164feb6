"""How tokens are drawn: what changes logits before, and what picks one of them.

Logits go through bias, least length, penalties and guidance, in this order. What is then left is normalised:
these are the log probabilities that are reported. Temperature comes next, then ``top_p``, ``min_p`` and ``top_k`` leave
tokens out, and one is drawn of those that remain.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection

import mlx.core as mx
import numpy as np

from tokenweir.ports.inference import Decoding
from tokenweir.runtime.engines.mlx.arrays import add_at, to_numpy
from tokenweir.runtime.engines.mlx.framework import Processor, Sampler, narrow
from tokenweir.runtime.engines.mlx.guides import GuideProcessor

SAMPLERS = 256
"""Samplers that are kept: a batch whose rows share one is drawn in one go."""


@functools.lru_cache(SAMPLERS)
def _sampler(temperature: float, top_p: float, top_k: int, min_p: float) -> Sampler:
    def draw(logits: mx.array) -> mx.array:
        return mx.random.categorical(_tempered(logits, temperature, top_p, top_k, min_p))

    return draw


def _greedy(logprobs: mx.array) -> mx.array:
    return mx.argmax(logprobs, axis=-1)


def _tempered(logits: mx.array, temperature: float, top_p: float, top_k: int, min_p: float) -> mx.array:
    """Return logits, normalised or not, as those of the distribution that is drawn from."""
    if temperature != 1:
        logits = logits / temperature
    if top_p < 1 or top_k > 0 or min_p > 0:
        # What is left out depends on probabilities, not on logits up to a constant.
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return narrow(logits, top_p=top_p, top_k=top_k, min_p=min_p)


def sampler(decoding: Decoding) -> Sampler:
    """Return what draws tokens from rows of logits, normalised or not; equal options have the same sampler."""
    if decoding.temperature <= 0:
        return _greedy
    return _sampler(decoding.temperature, decoding.top_p, decoding.top_k, decoding.min_p)


def draw(logprobs: mx.array, decoding: Decoding, key: mx.array) -> mx.array:
    """Draw a token from each row of log probabilities with a random key of its own."""
    if decoding.temperature <= 0:
        return _greedy(logprobs)
    tempered = _tempered(logprobs, decoding.temperature, decoding.top_p, decoding.top_k, decoding.min_p)
    return mx.random.categorical(tempered, key=key)


def processors(
    decoding: Decoding, prompt_tokens: int, stop_tokens: Collection[int], guide: GuideProcessor | None
) -> list[Processor]:
    """Return what changes the logits of one sequence; none where nothing was asked for."""
    found: list[Processor] = []
    if decoding.logit_bias:
        found.append(_bias(decoding))
    if decoding.min_tokens > 0 and stop_tokens and not decoding.ignore_eos:
        found.append(_least(decoding.min_tokens, prompt_tokens, sorted(stop_tokens)))
    if decoding.repetition_penalty != 1:
        found.append(_repetition(decoding.repetition_penalty))
    if decoding.presence_penalty or decoding.frequency_penalty:
        found.append(_occurrence(decoding.presence_penalty, decoding.frequency_penalty, prompt_tokens))
    if guide is not None:
        found.append(guide)
    return found


def likeliest(row: mx.array, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the log probability of ``token`` in a row of them, and the ``count`` likeliest tokens with theirs."""
    values = to_numpy(row)
    own = float(values[token])
    if count < 1:
        return own, ()
    count = min(count, len(values))
    best = np.argpartition(values, len(values) - count)[len(values) - count :]
    order = best[np.argsort(-values[best], kind="stable")]
    # What guidance forbids has probability 0, whose logarithm is no number that JSON has.
    return own, tuple((int(at), float(values[at])) for at in order if math.isfinite(values[at]))


def _bias(decoding: Decoding) -> Processor:
    tokens = mx.array(list(decoding.logit_bias), dtype=mx.int32)
    values = mx.array([float(value) for value in decoding.logit_bias.values()])

    def add_bias(_: mx.array, logits: mx.array) -> mx.array:
        return add_at(logits, tokens, values)

    return add_bias


def _least(least: int, prompt_tokens: int, stop_tokens: list[int]) -> Processor:
    stops = mx.array(stop_tokens, dtype=mx.int32)

    def forbid_the_end(context: mx.array, logits: mx.array) -> mx.array:
        if context.shape[0] - prompt_tokens < least:
            logits[:, stops] = -math.inf
        return logits

    return forbid_the_end


def _repetition(penalty: float) -> Processor:
    """Divide positive logits of tokens in prompt and answer by ``penalty``, and multiply negative ones.

    Source: Keskar et al. 2019, CTRL.
    """

    def penalise(context: mx.array, logits: mx.array) -> mx.array:
        known = logits[:, context]
        logits[:, context] = mx.where(known < 0, known * penalty, known / penalty)
        return logits

    return penalise


def _occurrence(presence: float, frequency: float, prompt_tokens: int) -> Processor:
    """Lower the logits of tokens in the answer: once for being there, and once for each time.

    Source: OpenAI API, ``presence_penalty`` and ``frequency_penalty``.
    """

    def penalise(context: mx.array, logits: mx.array) -> mx.array:
        answer = context[prompt_tokens:]
        if answer.shape[0] == 0:
            return logits
        if presence:
            there = mx.zeros((logits.shape[-1],), dtype=logits.dtype)
            there[answer] = presence
            logits = logits - there
        if frequency:
            logits = add_at(logits, answer, mx.array(-frequency))
        return logits

    return penalise

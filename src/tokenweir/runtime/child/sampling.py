"""What a request says of drawing tokens, made complete and checked: nothing is left to the engine."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Sampling
from tokenweir.ports.inference import Capability, Decoding, Guidance, Lane, ModelCard
from tokenweir.runtime.options import RunOptions

_DEFAULT_DRAFT_TOKENS: Final = 3
_MAX_LOGPROBS: Final = 20
_MAX_DRAFT_TOKENS: Final = 64
_TOO_LONG: Final = "context_length_exceeded"


def require(card: ModelCard, capability: Capability, what: str, *, param: str) -> None:
    """Raise ParameterError unless the model has ``capability``; ``what`` names what ``param`` asks for."""
    if capability not in card.capabilities:
        able = ", ".join(card.capabilities) or "nothing"
        raise ParameterError(
            f"the model {card.name!r} does not support {what}",
            param=param,
            reason="unsupported_parameter",
            mend=f"leave it out; this model supports {able}",
        )


def answer_tokens(
    card: ModelCard, sampling: Sampling, prompt_tokens: int, default: int, *, prompt: str
) -> int:
    """Return how many tokens one choice may have: what was asked for, or the rest of the context up to ``default``.

    A ``default`` of 0 is none. ``prompt`` names the field that holds the prompt.

    Raises:
        ParameterError: prompt and answer do not fit into the context.
    """
    room = card.context_tokens - prompt_tokens
    if room < 1:
        raise ParameterError(
            f"the prompt has {prompt_tokens} tokens; the context of {card.name!r} holds {card.context_tokens}, "
            f"the answer included",
            param=prompt,
            reason=_TOO_LONG,
            mend=f"shorten the prompt to {card.context_tokens - 1} tokens or less",
        )
    wanted = sampling.max_tokens
    if wanted is None:
        wanted = min(room, default) if default else room
        wanted = max(wanted, min(sampling.min_tokens or 0, room))
    if wanted < 1:
        raise ParameterError(f"max_tokens is {wanted}", param="max_tokens", mend="ask for at least 1")
    if wanted > room:
        raise ParameterError(
            f"{prompt_tokens} tokens of prompt and max_tokens {wanted} are {prompt_tokens + wanted}; the context of "
            f"{card.name!r} holds {card.context_tokens}",
            param=prompt,
            reason=_TOO_LONG,
            mend=f"shorten the prompt, or set max_tokens to {room} or less",
        )
    if not 0 <= (sampling.min_tokens or 0) <= wanted:
        raise ParameterError(
            f"min_tokens {sampling.min_tokens} is not within 0 and max_tokens {wanted}",
            param="min_tokens",
            mend="lower it",
        )
    return wanted


def decodings(
    card: ModelCard, sampling: Sampling, options: RunOptions, max_tokens: int, guidance: Guidance | None
) -> tuple[Decoding, ...]:
    """Return how each of the ``n`` choices is drawn. Raises ParameterError for what cannot be done, by name."""
    _check(card, sampling, options)
    if guidance is not None:
        require(
            card, "guidance", "guidance (a schema, expression, grammar or choice)", param="response_format"
        )
        if sampling.ignore_eos or sampling.min_tokens:
            other = "ignore_eos" if sampling.ignore_eos else "min_tokens"
            raise ParameterError(
                f"{other} and guidance contradict each other", param=other, mend="leave one out"
            )
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    # A greedy answer is the same with any seed, so it need not leave the batch.
    seed = None if temperature == 0 else sampling.seed
    if seed is not None:
        require(card, "seed", "a seed", param="seed")
    plain = guidance is None and sampling.logprobs is None and sampling.n == 1
    use_draft = options.use_draft
    if use_draft is None:
        # Who says how many tokens are drafted wants a draft.
        use_draft = options.draft_tokens is not None or (plain and card.draft is not None)
    first = Decoding(
        max_tokens=max_tokens,
        min_tokens=sampling.min_tokens or 0,
        temperature=temperature,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=options.min_p or 0.0,
        repetition_penalty=1.0 if options.repetition_penalty is None else options.repetition_penalty,
        presence_penalty=sampling.presence_penalty or 0.0,
        frequency_penalty=sampling.frequency_penalty or 0.0,
        logit_bias=options.logit_bias,
        seed=seed,
        logprobs=sampling.logprobs,
        ignore_eos=sampling.ignore_eos,
        guidance=guidance,
        kv_bits=options.kv_bits,
        use_draft=use_draft,
        draft_tokens=options.draft_tokens or _DEFAULT_DRAFT_TOKENS,
    )
    if seed is None:
        return (first,) * sampling.n
    return tuple(msgspec.structs.replace(first, seed=seed + index) for index in range(sampling.n))


def lane(decoding: Decoding) -> Lane:
    """Return where a sequence is decoded: apart, when the batch cannot do what it asks for."""
    apart = decoding.seed is not None or decoding.kv_bits is not None or decoding.use_draft
    return "exclusive" if apart else "batch"


def _check(card: ModelCard, sampling: Sampling, options: RunOptions) -> None:
    for name, value, low, high in (
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("top_k", sampling.top_k, 0, card.vocabulary),
        ("min_p", options.min_p, 0.0, 1.0),
        ("repetition_penalty", options.repetition_penalty, 0.01, 100.0),
        ("presence_penalty", sampling.presence_penalty, -100.0, 100.0),
        ("frequency_penalty", sampling.frequency_penalty, -100.0, 100.0),
        ("logprobs", sampling.logprobs, 0, _MAX_LOGPROBS),
        ("draft_tokens", options.draft_tokens, 1, _MAX_DRAFT_TOKENS),
    ):
        if value is not None and not low <= value <= high:
            raise ParameterError(f"{name} is {value}", param=name, mend=f"choose one within {low} and {high}")
    if sampling.n < 1:
        raise ParameterError(f"n is {sampling.n}", param="n", mend="ask for at least 1 choice")
    if not all(sampling.stop):
        raise ParameterError("a stop string is empty", param="stop", mend="leave it out")
    for token, bias in options.logit_bias.items():
        if not (0 <= token < card.vocabulary and math.isfinite(bias)):
            raise ParameterError(
                f"logit_bias gives the token {token} {bias}",
                param="logit_bias",
                mend=f"name tokens below {card.vocabulary} and finite numbers",
            )
    if sampling.logprobs is not None:
        require(card, "logprobs", "log probabilities", param="logprobs")
    if options.kv_bits is not None:
        require(card, "quantised_kv", "kv_bits, a quantised cache", param="kv_bits")
    if options.draft_tokens is not None and options.use_draft is False:
        raise ParameterError(
            "draft_tokens and use_draft false contradict each other",
            param="draft_tokens",
            mend="leave one out",
        )
    if options.use_draft or options.draft_tokens is not None:
        wanted = "use_draft" if options.use_draft else "draft_tokens"
        require(card, "draft", f"{wanted}, speculation with a draft model", param=wanted)
        if card.draft is None:
            raise ParameterError(
                f"the model {card.name!r} was loaded without a draft model",
                param=wanted,
                mend="load it with one",
            )

"""What a request says of drawing tokens, made complete and checked: nothing is left to the engine."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from tokenweir.core.errors import SpecError
from tokenweir.core.requests import Sampling
from tokenweir.ports.inference import Capability, Decoding, Guidance, Lane, ModelCard
from tokenweir.runtime.options import RunOptions

_DEFAULT_DRAFT_TOKENS: Final = 3
_MAX_LOGPROBS: Final = 20
_MAX_DRAFT_TOKENS: Final = 64


def require(card: ModelCard, capability: Capability, what: str) -> None:
    """Raise SpecError unless the model has ``capability``; ``what`` names what was asked for."""
    if capability not in card.capabilities:
        able = ", ".join(card.capabilities) or "nothing"
        raise SpecError(
            f"the model {card.name!r} does not support {what}",
            mend=f"leave it out; this model supports {able}",
        )


def answer_tokens(card: ModelCard, sampling: Sampling, prompt_tokens: int, default: int) -> int:
    """Return how many tokens one choice may have: what was asked for, or the rest of the context up to ``default``.

    A ``default`` of 0 is none.

    Raises:
        SpecError: prompt and answer do not fit into the context.
    """
    room = card.context_tokens - prompt_tokens
    if room < 1:
        raise SpecError(
            f"the prompt has {prompt_tokens} tokens; the context of {card.name!r} holds {card.context_tokens}, "
            f"the answer included",
            mend=f"shorten the prompt to {card.context_tokens - 1} tokens or less",
        )
    wanted = sampling.max_tokens
    if wanted is None:
        wanted = min(room, default) if default else room
        wanted = max(wanted, min(sampling.min_tokens or 0, room))
    if wanted < 1:
        raise SpecError(f"max_tokens is {wanted}", mend="ask for at least 1")
    if wanted > room:
        raise SpecError(
            f"{prompt_tokens} tokens of prompt and max_tokens {wanted} are {prompt_tokens + wanted}; the context of "
            f"{card.name!r} holds {card.context_tokens}",
            mend=f"shorten the prompt, or set max_tokens to {room} or less",
        )
    if not 0 <= (sampling.min_tokens or 0) <= wanted:
        raise SpecError(
            f"min_tokens {sampling.min_tokens} is not within 0 and max_tokens {wanted}", mend="lower it"
        )
    return wanted


def decodings(
    card: ModelCard, sampling: Sampling, options: RunOptions, max_tokens: int, guidance: Guidance | None
) -> tuple[Decoding, ...]:
    """Return how each of the ``n`` choices is drawn. Raises SpecError for what cannot be done, by name."""
    _check(card, sampling, options)
    if guidance is not None:
        require(card, "guidance", "guidance (a schema, expression, grammar or choice)")
        if sampling.ignore_eos or sampling.min_tokens:
            other = "ignore_eos" if sampling.ignore_eos else "min_tokens"
            raise SpecError(f"{other} and guidance contradict each other", mend="leave one out")
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    # A greedy answer is the same with any seed, so it need not leave the batch.
    seed = None if temperature == 0 else sampling.seed
    if seed is not None:
        require(card, "seed", "a seed")
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
            raise SpecError(f"{name} is {value}", mend=f"choose one within {low} and {high}")
    if sampling.n < 1:
        raise SpecError(f"n is {sampling.n}", mend="ask for at least 1 choice")
    if not all(sampling.stop):
        raise SpecError("a stop string is empty", mend="leave it out")
    for token, bias in options.logit_bias.items():
        if not (0 <= token < card.vocabulary and math.isfinite(bias)):
            raise SpecError(
                f"logit_bias gives the token {token} {bias}",
                mend=f"name tokens below {card.vocabulary} and finite numbers",
            )
    if sampling.logprobs is not None:
        require(card, "logprobs", "log probabilities")
    if options.kv_bits is not None:
        require(card, "quantised_kv", "kv_bits, a quantised cache")
    if options.draft_tokens is not None and options.use_draft is False:
        raise SpecError("draft_tokens and use_draft false contradict each other", mend="leave one out")
    if options.use_draft or options.draft_tokens is not None:
        wanted = "use_draft" if options.use_draft else "draft_tokens"
        require(card, "draft", f"{wanted}, speculation with a draft model")
        if card.draft is None:
            raise SpecError(
                f"the model {card.name!r} was loaded without a draft model", mend="load it with one"
            )

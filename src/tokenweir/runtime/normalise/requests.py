"""A body of one of the text routes, into what the engine is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, cast

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import GenerateRequest, Json, Kind, Sampling
from tokenweir.runtime.images import ImageLimits
from tokenweir.runtime.normalise.guidance import guidance
from tokenweir.runtime.normalise.messages import messages, tool_choice, tools
from tokenweir.runtime.normalise.values import Values
from tokenweir.runtime.normalise.vocabulary import REQUESTS
from tokenweir.runtime.options import Priority, RunOptions

MAX_CHOICES: Final = 64
MAX_STOPS: Final = 16
MAX_LOGPROBS: Final = 20
MAX_PROMPTS: Final = 64
MAX_INPUTS: Final = 2048
MAX_TOKENS: Final = 1 << 24
COMPLETION_TOKENS: Final = 16
"""Output tokens of a text completion that states none, as OpenAI has it; for a chat the settings say."""

_SEED: Final = 1 << 63
_LONGEST_STOP: Final = 1024
_LOUDEST_BIAS: Final = 100.0
_NO_LIMITS: Final = ImageLimits()


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A body understood: one request for each prompt, all with the same options.

    ``model`` is empty where the body names none. ``draft_model`` is the draft that the client expects.
    ``logprobs`` says that log probabilities go into the answer.
    """

    kind: Kind
    model: str
    requests: tuple[GenerateRequest, ...]
    options: RunOptions = RunOptions()
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    draft_model: str | None = None
    encoding: Literal["float", "base64"] = "float"

    @property
    def n(self) -> int:
        """Choices for each prompt."""
        return self.requests[0].sampling.n


def normalise(kind: Kind, body: Mapping[str, Json], limits: ImageLimits = _NO_LIMITS) -> Ask:
    """Return what a body asks for.

    Raises:
        ParameterError: a name is unknown or not supported, a value is not what it should be, or two contradict
            each other. The error's ``param`` is the name that the client wrote.
    """
    values = Values(REQUESTS.sort_out(kind, body))
    model = values.text("model") or ""
    if kind == "embedding":
        return _embedding(values, model)
    stream = values.boolean("stream") or False
    use_draft, draft_model = _draft(values)
    logprobs = _logprobs(values, kind)
    options = RunOptions(
        priority=cast(
            "Priority", values.choice("priority", "interactive", "normal", "background") or "normal"
        ),
        timeout_ns=values.duration_ns("timeout"),
        min_p=values.number("min_p", 0, 1, off=0.0),
        repetition_penalty=values.number("repetition_penalty", 0.01, 10, off=1.0),
        logit_bias=_logit_bias(values),
        guidance=guidance(values),
        kv_bits=_kv_bits(values),
        use_draft=use_draft,
        draft_tokens=values.integer("draft_tokens", 1, 16),
        use_prefix_cache=values.boolean("use_prefix_cache") is not False,
    )
    return Ask(
        kind=kind,
        model=model,
        requests=_requests(values, kind, model, logprobs=logprobs, stream=stream, limits=limits),
        options=options,
        stream=stream,
        include_usage=_include_usage(values, stream=stream),
        logprobs=logprobs is not None,
        draft_model=draft_model,
    )


def _requests(
    values: Values, kind: Kind, model: str, *, logprobs: int | None, stream: bool, limits: ImageLimits
) -> tuple[GenerateRequest, ...]:
    sampling = _sampling(values, kind, logprobs)
    if kind == "completion":
        return tuple(
            GenerateRequest(kind=kind, model=model, prompt=prompt, sampling=sampling, stream=stream)
            for prompt in _prompts(values)
        )
    known = tools(values)
    kwargs = values.table("chat_template_kwargs")
    request = GenerateRequest(
        kind=kind,
        model=model,
        messages=messages(values, limits),
        sampling=sampling,
        stream=stream,
        tools=known,
        tool_choice=tool_choice(values, known),
        extra={"chat_template_kwargs": dict(kwargs)} if kwargs else {},
    )
    return (request,)


def _sampling(values: Values, kind: Kind, logprobs: int | None) -> Sampling:
    most = None if values.raw("max_tokens") is False else values.integer("max_tokens", 1, MAX_TOKENS)
    least = values.integer("min_tokens", 0, MAX_TOKENS)
    if most is None and kind == "completion" and "max_tokens" not in values:
        most = max(COMPLETION_TOKENS, least or 0)
    if most is not None and least is not None and least > most:
        raise values.wrong("min_tokens", f"at most {values.spelling('max_tokens')}, {most}")
    top_k = values.integer("top_k", -1, MAX_TOKENS)
    return Sampling(
        max_tokens=most,
        min_tokens=least,
        temperature=values.number("temperature", 0, 2),
        top_p=values.number("top_p", 0, 1, off=1.0),
        top_k=0 if top_k == -1 else top_k,
        presence_penalty=values.number("presence_penalty", -2, 2),
        frequency_penalty=values.number("frequency_penalty", -2, 2),
        stop=_stops(values),
        seed=values.integer("seed", -_SEED, _SEED - 1),
        n=values.integer("n", 1, MAX_CHOICES) or 1,
        ignore_eos=values.boolean("ignore_eos") or False,
        logprobs=logprobs,
    )


def _stops(values: Values) -> tuple[str, ...]:
    given = values.raw("stop")
    if given is None:
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or len(texts) > MAX_STOPS:
        raise values.wrong("stop", f"a text, or a list of {MAX_STOPS} at most")
    if not all(isinstance(one, str) and 0 < len(one) <= _LONGEST_STOP for one in texts):
        raise values.wrong("stop", f"made of texts of 1 to {_LONGEST_STOP} characters")
    return tuple(dict.fromkeys(cast("list[str]", texts)))


def _logprobs(values: Values, kind: Kind) -> int | None:
    """Return the number of alternatives to tell with each token; ``None`` for no log probabilities.

    OpenAI's chat says ``logprobs: true`` and ``top_logprobs``, its completions ``logprobs: 3``, LM Studio
    ``logProbs: 3`` or ``false``.
    """
    given = values.raw("logprobs")
    alternatives = values.integer("top_logprobs", 0, MAX_LOGPROBS)
    if isinstance(given, bool) or given is None:
        if alternatives is not None and not given:
            if kind == "chat" or given is False:
                raise values.wrong("top_logprobs", "sent together with logprobs: true")
            return alternatives
        return (alternatives or 0) if given else None
    count = values.integer("logprobs", 0, MAX_LOGPROBS)
    if alternatives is not None and alternatives != count:
        raise values.wrong("top_logprobs", f"{count}, as logprobs says, or left out")
    return count


def _logit_bias(values: Values) -> Mapping[int, float]:
    table = values.table("logit_bias") or {}
    found: dict[int, float] = {}
    for token, bias in table.items():
        ok = (
            token.isascii()
            and token.isdecimal()
            and not isinstance(bias, bool)
            and isinstance(bias, int | float)
        )
        if not ok or abs(cast("float", bias)) > _LOUDEST_BIAS:
            raise values.wrong("logit_bias", "an object of token ids and numbers from -100 to 100")
        found[int(token)] = float(cast("float", bias))
    return found


def _kv_bits(values: Values) -> Literal[4, 8] | None:
    bits = values.raw("kv_bits")
    if bits is None or (isinstance(bits, int) and bits in {4, 8}):
        return cast("Literal[4, 8] | None", bits)
    raise values.wrong("kv_bits", "4 or 8")


def _draft(values: Values) -> tuple[bool | None, str | None]:
    use, model = values.boolean("use_draft"), values.text("draft_model")
    if model and use is False:
        raise ParameterError(
            f"{values.spelling('draft_model')!r} names a draft, and {values.spelling('use_draft')!r} forbids one",
            param=values.spelling("use_draft"),
            reason="contradictory_parameters",
            mend="send one of them",
        )
    return (True if model else use), model or None


def _include_usage(values: Values, *, stream: bool) -> bool:
    table = values.table("stream_options")
    if table is None:
        return False
    if not stream:
        raise values.wrong("stream_options", "left out where stream is not true")
    foreign = sorted(
        key for key, value in table.items() if key != "include_usage" and value not in (None, False)
    )
    if foreign:
        param = f"{values.spelling('stream_options')}.{foreign[0]}"
        raise ParameterError(
            f"{param!r} is not supported", param=param, reason="unsupported_parameter", mend="leave it out"
        )
    wanted = table.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        raise values.wrong("stream_options", "an object with include_usage true or false")
    return wanted or False


def _prompts(values: Values) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts of a text completion: a text, token ids, or a list of either."""
    given = values.raw("prompt")
    if given is None:
        raise ParameterError(
            "there is no prompt",
            param="prompt",
            reason="missing_required_parameter",
            mend="send a text or token ids",
        )
    if isinstance(given, str):
        return (given,)
    wanted = f"a text, a list of token ids, or a list of {MAX_PROMPTS} of those at most"
    if not isinstance(given, list) or not given:
        raise values.wrong("prompt", wanted)
    if _token_ids(given):
        return (tuple(cast("list[int]", given)),)
    if len(given) > MAX_PROMPTS or not all(
        isinstance(one, str) or (one and _token_ids(one)) for one in given
    ):
        raise values.wrong("prompt", wanted)
    return tuple(one if isinstance(one, str) else tuple(cast("list[int]", one)) for one in given)


def _token_ids(value: Json) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _embedding(values: Values, model: str) -> Ask:
    given = values.raw("input")
    if given is None:
        raise ParameterError(
            "'input' is missing",
            param="input",
            reason="missing_required_parameter",
            mend=f"send a text, or a list of 1 to {MAX_INPUTS}",
        )
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 0 < len(texts) <= MAX_INPUTS:
        raise values.wrong("input", f"a text, or a list of 1 to {MAX_INPUTS}")
    if not all(isinstance(one, str) and one for one in texts):
        raise values.wrong("input", "made of texts that are not empty; token ids are not supported")
    if "dimensions" in values:
        raise ParameterError(
            f"{values.spelling('dimensions')!r} is not supported",
            param=values.spelling("dimensions"),
            reason="unsupported_parameter",
            mend="leave it out: vectors have the model's own length",
        )
    encoding = values.choice("encoding_format", "float", "base64") or "float"
    request = GenerateRequest(
        kind="embedding", model=model, inputs=tuple(cast("list[str]", texts)), stream=False
    )
    return Ask(
        kind="embedding",
        model=model,
        requests=(request,),
        encoding=cast("Literal['float', 'base64']", encoding),
    )

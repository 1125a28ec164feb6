"""From a request as it was asked to one that can be decoded: rendered, tokenised, and refused where it must be.

Runs on the RPC thread while the device works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import GenerateRequest, Json, Message
from tokenweir.ports.inference import Guidance, GuidanceChecker, LoadedModel
from tokenweir.runtime.bridge.messages import Prepare, Prepared
from tokenweir.runtime.child.answer import AnswerRules
from tokenweir.runtime.child.requests import Request
from tokenweir.runtime.child.sampling import answer_tokens, decodings, lane, require
from tokenweir.runtime.child.tool_choice import Toolbox, toolbox
from tokenweir.runtime.guidance.check import check
from tokenweir.runtime.images import ImageLimits, data_url
from tokenweir.runtime.normalise.guidance import response_format

_TEMPLATE_OPTIONS: Final = "chat_template_kwargs"


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may ask for.

    ``default_max_tokens`` caps an answer whose request states no length, as far as its model has no other; 0: the
    context alone does.
    """

    max_images: int = 16
    max_image_bytes: int = 16 << 20
    max_image_pixels: int = 32_000_000
    default_max_tokens: int = 0

    @property
    def images(self) -> ImageLimits:
        """The limits of images."""
        return ImageLimits(
            count=self.max_images, size_bytes=self.max_image_bytes, pixels=self.max_image_pixels
        )


def prepare(ask: Prepare, model: LoadedModel, limits: RequestLimits) -> Request:
    """Return the request as the device will decode it.

    Raises:
        ParameterError: it contradicts itself, does not fit, or asks for what the model cannot do.
        GuidanceError: its guidance cannot be obeyed.
    """
    request, card = ask.request, model.card
    guidance = _guidance(ask)
    rules = AnswerRules(stops=request.sampling.stop, logprobs=request.sampling.logprobs is not None)
    images: tuple[bytes, ...] = ()
    if request.kind == "chat":
        require(card, "chat", "chat: it has no chat template", param="messages")
        box = toolbox(request, model, guidance)
        guidance = box.guidance
        tokens, images, reasoning = _chat(request, model, box, limits)
        rules = msgspec.structs.replace(
            rules,
            fenced=guidance is None,
            tools=box.parsed,
            forced=box.forced,
            reasoning=reasoning and guidance is None,
        )
    elif request.kind == "completion":
        require(card, "completion", "completions", param="prompt")
        _only_text(request)
        tokens = _prompt(request, model)
    else:
        raise ParameterError("embeddings are not generated", param="kind", mend="use the method 'embed'")
    named = "messages" if request.kind == "chat" else "prompt"
    if not tokens:
        raise ParameterError("the prompt is empty", param=named, mend="send at least one token")
    default = limits.default_max_tokens if ask.default_max_tokens is None else ask.default_max_tokens
    most = answer_tokens(card, request.sampling, len(tokens), default, prompt=named)
    choices = decodings(card, request.sampling, ask.options, most, guidance)
    if guidance is not None:
        # What compiles is not always obeyed: a compiler passes over the words that it does not know.
        check(guidance)
        if isinstance(model, GuidanceChecker):
            model.check_guidance(guidance)
    return Request(
        stream=ask.stream,
        model=ask.model,
        tokens=tokens,
        choices=choices,
        rules=rules,
        images=images,
        lane=lane(choices[0]),
        use_prefix_cache=ask.options.use_prefix_cache,
    )


def size(request: Request) -> Prepared:
    """Return how large a request is."""
    return Prepared(
        stream=request.stream,
        prompt_tokens=len(request.tokens),
        max_tokens=request.choices[0].max_tokens,
        sequences=len(request.choices),
        exclusive=request.lane == "exclusive",
    )


def _guidance(ask: Prepare) -> Guidance | None:
    stated = ask.options.guidance
    asked = ask.request.response_format
    if asked is None:
        return stated
    told = response_format("response_format", asked)
    if stated is not None and told is not None and told != stated:
        raise ParameterError(
            "response_format and the option guidance differ", param="response_format", mend="send one of them"
        )
    return stated or told


def _chat(
    request: GenerateRequest, model: LoadedModel, box: Toolbox, limits: RequestLimits
) -> tuple[tuple[int, ...], tuple[bytes, ...], bool]:
    """Return the prompt's tokens, its images, and whether it ends by opening a reasoning."""
    if not request.messages:
        raise ParameterError("there are no messages", param="messages", mend="send at least one")
    images: list[bytes] = []
    messages = [_message(place, one, images, limits) for place, one in enumerate(request.messages)]
    if images:
        require(model.card, "vision", "images", param="messages")
        if len(images) > limits.max_images:
            raise ParameterError(
                f"the messages hold {len(images)} images",
                param="messages",
                mend=f"send {limits.max_images} at most",
            )
    rendered = model.format.render(messages, box.shown, _template_options(request))
    opening = model.format.markers().think[0]
    reasoning = bool(opening) and rendered.rstrip().endswith(opening)
    return tuple(model.format.encode(rendered, special=False)), tuple(images), reasoning


def _template_options(request: GenerateRequest) -> Mapping[str, Json]:
    unknown = [name for name in request.extra if name != _TEMPLATE_OPTIONS]
    if unknown:
        raise ParameterError(
            f"the option {unknown[0]!r} is not supported",
            param=unknown[0],
            reason="unsupported_parameter",
            mend=f"leave it out; there is {_TEMPLATE_OPTIONS!r}",
        )
    options = request.extra.get(_TEMPLATE_OPTIONS) or {}
    if not isinstance(options, dict):
        raise ParameterError(
            f"{_TEMPLATE_OPTIONS!r} is {options!r}", param=_TEMPLATE_OPTIONS, mend="send an object"
        )
    return options


def _message(place: int, message: Message, images: list[bytes], limits: RequestLimits) -> Message:
    """Return the message with its text parts joined, or with its images taken out and their places marked."""
    if not isinstance(message.content, tuple):
        return message
    parts: list[dict[str, Json]] = []
    for number, part in enumerate(message.content):
        where = f"messages[{place}].content[{number}]"
        match part.get("type"):
            case "text":
                text = part.get("text")
                if not isinstance(text, str):
                    raise ParameterError(
                        f"{where} has no text", param=where, mend="send {'type': 'text', 'text': …}"
                    )
                parts.append({"type": "text", "text": text})
            case "image_url":
                inner = part.get("image_url")
                url = inner.get("url") if isinstance(inner, dict) else inner
                if not isinstance(url, str):
                    raise ParameterError(f"{where} has no url", param=where, mend="send a data URL")
                images.append(data_url(url, f"{where}.image_url.url", limits.images))
                parts.append({"type": "image"})
            case other:
                raise ParameterError(
                    f"{where} has the type {other!r}", param=where, mend="send 'text' or 'image_url'"
                )
    if all(part["type"] == "text" for part in parts):
        return msgspec.structs.replace(message, content="\n".join(str(part["text"]) for part in parts))
    return msgspec.structs.replace(message, content=tuple(parts))


def _only_text(request: GenerateRequest) -> None:
    if request.tools or request.tool_choice not in (None, "none"):
        raise ParameterError("tools need the chat interface", param="tools", mend="send messages")
    if request.extra:
        option = next(iter(request.extra))
        raise ParameterError(
            f"the option {option!r} is not supported",
            param=option,
            reason="unsupported_parameter",
            mend="leave it out",
        )


def _prompt(request: GenerateRequest, model: LoadedModel) -> tuple[int, ...]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return tuple(model.format.encode(prompt))
    size = model.card.vocabulary
    stray = next((token for token in prompt if not 0 <= token < size), None)
    if stray is not None:
        raise ParameterError(
            f"the prompt holds the token {stray}", param="prompt", mend=f"send tokens below {size}"
        )
    return prompt

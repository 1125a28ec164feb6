"""Input items: what a conversation is made of, as it is kept, and as the messages of a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, cast

import msgspec

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json
from tokenweir.gateway.responses.asked import convert

Item = dict[str, Json]
Role = Literal["user", "assistant", "system", "developer"]

PREFIXES: Final[Mapping[str, str]] = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}
"""How the ids of items begin."""


class _Message(msgspec.Struct, frozen=True):
    role: Role
    content: str | list[Item]


class _Call(msgspec.Struct, frozen=True):
    call_id: str
    name: str
    arguments: str


class _Output(msgspec.Struct, frozen=True):
    call_id: str
    output: str | list[Item]


class _TextPart(msgspec.Struct, frozen=True):
    text: str


class _ImagePart(msgspec.Struct, frozen=True):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


class _RefusalPart(msgspec.Struct, frozen=True):
    refusal: str


def kept_items(given: str | Sequence[Item], suffix: str) -> list[Item]:
    """Return input as items with a type and an id; ``suffix`` is what the response's own id ends in.

    Raises ParameterError for what is no item that can be used.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise ParameterError(
            "the input is empty", param="input", mend="send a text, or a list of at least one item"
        )
    found: list[Item] = []
    for position, item in enumerate(given):
        kind = item.get("type") or ("message" if "role" in item else None)
        if not isinstance(kind, str) or kind not in PREFIXES:
            raise ParameterError(
                f"input[{position}].type is {kind!r}",
                param=f"input[{position}].type",
                reason="unsupported_parameter",
                mend=f"items are of the types {', '.join(PREFIXES)}",
            )
        kept: Item = {"id": f"{PREFIXES[kind]}_{suffix}i{position}", **item, "type": kind}
        if kind == "message":
            kept["content"] = _content_parts(item.get("content"), item.get("role"))
        found.append(kept)
    # They are read once now, so that what cannot be used is told before anything is kept.
    messages_of(found, place="input")
    return found


def _content_parts(content: Json, role: Json) -> Json:
    if not isinstance(content, str):
        return content
    kind = "output_text" if role == "assistant" else "input_text"
    part: Item = {"type": kind, "text": content}
    if role == "assistant":
        part["annotations"] = []
    return [part]


def messages_of(items: Sequence[Item], *, place: str) -> list[Json]:
    """Return the messages of a chat that items mean.

    What was thought in earlier turns is left out, as the templates of reasoning models do. A function's calls belong
    to the assistant's message before them. Raises ParameterError naming the place of what cannot be used.
    """
    found: list[Json] = []
    for position, item in enumerate(items):
        there = f"{place}[{position}]"
        match item.get("type"):
            case "message":
                found.append(_message(item, there))
            case "function_call":
                _assistants(found).append(_call(item, there))
            case "function_call_output":
                output = convert(item, _Output, place=there)
                text = output.output
                if not isinstance(text, str):
                    text = "".join(_text(part, f"{there}.output[{n}]") for n, part in enumerate(text))
                found.append({"role": "tool", "tool_call_id": output.call_id, "content": text})
            case _:
                continue
    return found


def _assistants(messages: list[Json]) -> list[Json]:
    """Return the calls of the assistant's message that is the last one, which is made where it is not."""
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        last = cast("Item", {"role": "assistant", "content": None})
        messages.append(last)
    return cast("list[Json]", last.setdefault("tool_calls", []))


def _call(item: Item, place: str) -> Json:
    call = convert(item, _Call, place=place)
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _message(item: Item, place: str) -> Item:
    message = convert(item, _Message, place=place)
    # A developer's instructions are the system's: few chat templates know the former.
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = [
        _PARTS.get(str(part.get("type")), _foreign)(part, f"{place}.content[{position}]")
        for position, part in enumerate(content)
    ]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(texts) == len(parts):
        # Plain text, which every endpoint takes.
        return {"role": role, "content": "".join(str(text) for text in texts)}
    return {"role": role, "content": cast("Json", parts)}


def _text_part(part: Item, place: str) -> Item:
    return {"type": "text", "text": convert(part, _TextPart, place=place).text}


def _refusal_part(part: Item, place: str) -> Item:
    return {"type": "text", "text": convert(part, _RefusalPart, place=place).refusal}


def _image_part(part: Item, place: str) -> Item:
    image = convert(part, _ImagePart, place=place)
    if image.image_url is None:
        raise ParameterError(
            f"{place} has no image_url",
            param=f"{place}.image_url",
            reason="unsupported_parameter" if image.file_id else "missing_required_parameter",
            mend="send the image as a URL, or as data:image/png;base64,…",
        )
    inner: Item = {"url": image.image_url}
    if image.detail is not None:
        inner["detail"] = image.detail
    return {"type": "image_url", "image_url": inner}


def _foreign(part: Item, place: str) -> Item:
    raise ParameterError(
        f"{place}.type is {part.get('type')!r}",
        param=f"{place}.type",
        reason="unsupported_parameter",
        mend=f"content is of the types {', '.join(_PARTS)}",
    )


def _text(part: Item, place: str) -> str:
    if part.get("type") not in {"input_text", "output_text"}:
        raise ParameterError(
            f"{place}.type is {part.get('type')!r}",
            param=f"{place}.type",
            reason="unsupported_parameter",
            mend="what a function gave is text",
        )
    return convert(part, _TextPart, place=place).text


_PARTS: Final[Mapping[str, Callable[[Item, str], Item]]] = {
    "input_text": _text_part,
    "output_text": _text_part,
    "refusal": _refusal_part,
    "input_image": _image_part,
}

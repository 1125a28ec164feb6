"""The one request model: what is asked of a language model, whoever asks and whatever engine answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
else:
    # msgspec cannot resolve a recursive alias at run time; it decodes Any to the same values.
    Json = Any
"""A JSON value."""

Kind = Literal["chat", "completion", "embedding"]
"""Which of the three interfaces a request uses."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool, in a message or as an increment of one.

    ``index`` tells parallel calls apart. ``arguments`` is JSON text, or a piece of it in a stream.
    """

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation. ``content`` is text, or OpenAI content parts as they are."""

    role: str
    content: str | tuple[dict[str, Json], ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call; ``parameters`` is its JSON Schema."""

    name: str
    description: str = ""
    parameters: dict[str, Json] = {}


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer is drawn. ``None`` leaves a choice to the engine.

    ``max_tokens`` and ``min_tokens`` count output tokens. ``ignore_eos`` makes the length exact where the
    engine offers it. ``logprobs`` is the number of alternatives per output token.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    ignore_eos: bool = False
    logprobs: int | None = None


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for text or embeddings.

    ``messages`` belongs to kind ``chat``; ``prompt`` (text, or token ids) to ``completion``; ``inputs`` to
    ``embedding``. ``extra`` is merged into the engine's JSON body last, as it stands.
    """

    kind: Kind
    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] = ""
    inputs: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    stream: bool = True
    tools: tuple[Tool, ...] = ()
    tool_choice: str | dict[str, Json] | None = None
    response_format: dict[str, Json] | None = None
    extra: dict[str, Json] = {}

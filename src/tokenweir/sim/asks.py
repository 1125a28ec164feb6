"""What a request body asks for: OpenAI's three interfaces and SGLang's ``/generate``, in one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeVar
from zlib import crc32

import msgspec

from tokenweir.core.requests import Json
from tokenweir.sim.http import HttpError

Route = Literal["chat", "completion", "generate", "embedding"]

_GENERATE_DEFAULT_TOKENS: Final = 128
MAX_CHOICES: Final = 128

BodyT = TypeVar("BodyT")
Prompt = str | list[str | int | list[int]]


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Json]] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _ChatBody(msgspec.Struct):
    messages: list[_Message]
    model: str = ""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    ignore_eos: bool = False
    tools: list[dict[str, Json]] | None = None
    tool_choice: str | dict[str, Json] | None = None
    response_format: dict[str, Json] | None = None


class _CompletionBody(msgspec.Struct):
    prompt: Prompt
    model: str = ""
    max_tokens: int | None = None
    n: int | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    ignore_eos: bool = False


class _SamplingParams(msgspec.Struct):
    max_new_tokens: int | None = _GENERATE_DEFAULT_TOKENS
    ignore_eos: bool = False
    temperature: float | None = None


class _GenerateBody(msgspec.Struct):
    text: str | None = None
    input_ids: list[int] | None = None
    sampling_params: _SamplingParams | None = None
    stream: bool = False
    rid: str | None = None


class _EmbeddingBody(msgspec.Struct):
    input: Prompt
    model: str = ""
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None


class Ask:
    """A request for text. ``max_tokens`` is ``None`` where the client leaves it open.

    ``text`` is what scripts match: the prompt, or the last user message. ``seed`` is a checksum of the whole
    prompt, so that the same prompt gets the same answer in any run.
    """

    __slots__ = (
        "ignore_eos",
        "include_usage",
        "input_tokens",
        "max_tokens",
        "model",
        "n",
        "prompt",
        "response_format",
        "rid",
        "route",
        "seed",
        "stream",
        "text",
        "tool_choice",
        "tools",
    )

    def __init__(self, route: Route, model: str, prompt: str, input_tokens: int) -> None:
        self.route: Route = route
        self.model = model
        self.prompt = prompt
        self.text = prompt
        self.input_tokens = input_tokens
        self.seed = crc32(prompt.encode("utf-8", "surrogatepass"))
        self.max_tokens: int | None = None
        self.n = 1
        self.stream = False
        self.include_usage = False
        self.ignore_eos = False
        self.rid: str | None = None
        self.tools: list[dict[str, Json]] | None = None
        self.tool_choice: str | dict[str, Json] | None = None
        self.response_format: dict[str, Json] | None = None


def _reader(kind: type[BodyT]) -> Callable[[bytes], BodyT]:
    decoder = msgspec.json.Decoder(kind)

    def read(data: bytes) -> BodyT:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HttpError(400, f"the body cannot be read: {error}") from None

    return read


_read_chat = _reader(_ChatBody)
_read_completion = _reader(_CompletionBody)
_read_generate = _reader(_GenerateBody)
_read_embedding = _reader(_EmbeddingBody)


def read_chat(data: bytes, count: Callable[[str], int]) -> Ask:
    """Return what a ``/v1/chat/completions`` body asks. Raises HttpError 400."""
    body = _read_chat(data)
    if not body.messages:
        raise HttpError(400, "messages is empty")
    texts = [_content(message.content) for message in body.messages]
    ask = Ask("chat", body.model, "\n".join(texts), sum(map(count, texts)))
    if len(texts) > 1:
        users = (text for text, message in zip(texts, body.messages, strict=True) if message.role == "user")
        *_, ask.text = ("", *users)
    limit = body.max_completion_tokens
    ask.max_tokens = _positive(body.max_tokens if limit is None else limit, "max_tokens")
    ask.n = _choices(body.n)
    ask.stream = bool(body.stream)
    ask.include_usage = body.stream_options is not None and body.stream_options.include_usage
    ask.ignore_eos = body.ignore_eos
    ask.tools, ask.tool_choice, ask.response_format = body.tools, body.tool_choice, body.response_format
    return ask


def read_completion(data: bytes, count: Callable[[str], int]) -> Ask:
    """Return what a ``/v1/completions`` body asks, several prompts as choices. Raises HttpError 400."""
    body = _read_completion(data)
    prompts = _prompts(body.prompt)
    ask = Ask(
        "completion",
        body.model,
        "\n".join(one if isinstance(one, str) else " ".join(map(str, one)) for one in prompts),
        sum(count(one) if isinstance(one, str) else len(one) for one in prompts),
    )
    ask.max_tokens = _positive(body.max_tokens, "max_tokens")
    ask.n = _choices(_choices(body.n) * len(prompts))
    ask.stream = bool(body.stream)
    ask.include_usage = body.stream_options is not None and body.stream_options.include_usage
    ask.ignore_eos = body.ignore_eos
    return ask


def read_generate(data: bytes, count: Callable[[str], int]) -> Ask:
    """Return what a ``/generate`` body asks. Raises HttpError 400."""
    body = _read_generate(data)
    if body.text is None and body.input_ids is None:
        raise HttpError(400, "Either text or input_ids should be provided.")
    sampling = body.sampling_params or _SamplingParams()
    if sampling.temperature is not None and sampling.temperature < 0:
        raise HttpError(400, f"temperature must be a non-negative finite number, got {sampling.temperature}.")
    if body.text is not None:
        ask = Ask("generate", "", body.text, count(body.text))
    else:
        ids = body.input_ids or []
        ask = Ask("generate", "", " ".join(map(str, ids)), len(ids))
    ask.max_tokens = _positive(sampling.max_new_tokens, "max_new_tokens")
    ask.ignore_eos = sampling.ignore_eos
    ask.stream = body.stream
    ask.rid = body.rid
    return ask


class EmbeddingAsk(msgspec.Struct, frozen=True):
    """A request for vectors, one per input: the input's tokens and a checksum of it."""

    model: str
    inputs: tuple[tuple[int, int], ...]
    base64: bool
    size: int | None


def read_embedding(data: bytes, count: Callable[[str], int]) -> EmbeddingAsk:
    """Return what a ``/v1/embeddings`` body asks. Raises HttpError 400."""
    body = _read_embedding(data)
    inputs: list[tuple[int, int]] = []
    for one in _prompts(body.input):
        if isinstance(one, str):
            inputs.append((count(one), crc32(one.encode("utf-8", "surrogatepass"))))
        else:
            inputs.append((len(one), crc32(repr(one).encode())))
    return EmbeddingAsk(
        body.model, tuple(inputs), body.encoding_format == "base64", _positive(body.dimensions, "dimensions")
    )


def _prompts(prompt: Prompt) -> Sequence[str | list[int]]:
    """Return the single prompts of the four forms that OpenAI allows. Raises HttpError 400 for none."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise HttpError(400, "there is no prompt in the list")
    ids = [one for one in prompt if isinstance(one, int)]
    if len(ids) == len(prompt):
        return [ids]
    if ids:
        raise HttpError(400, "the list mixes token ids and prompts")
    return [one for one in prompt if not isinstance(one, int)]


def _content(content: str | list[dict[str, Json]] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(text for part in content or () if isinstance(text := part.get("text"), str))


def _choices(n: int | None) -> int:
    if n is None:
        return 1
    if not 1 <= n <= MAX_CHOICES:
        raise HttpError(400, f"n is {n}, not from 1 to {MAX_CHOICES}")
    return n


def _positive(value: int | None, name: str) -> int | None:
    if value is not None and value < 1:
        raise HttpError(400, f"{name} must be at least 1, got {value}.")
    return value

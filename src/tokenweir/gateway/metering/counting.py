"""Tokens by the model's own tokenizer: of prompts before they are asked, of answers whose server says none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tokenweir.backends.frames import UNDECODABLE
from tokenweir.backends.openai import ROUTES, decoder
from tokenweir.core.events import Event, Failed, Token
from tokenweir.core.requests import GenerateRequest, Json, Kind, Sampling
from tokenweir.gateway.direct.body import RequestBody
from tokenweir.gateway.metering.usage import TokenCount
from tokenweir.ports.tokenizer import TokenCounter
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.counting")
INLINE: Final = 2048
"""Bytes or characters that are counted at once; more would hold the event loop up for a millisecond."""
MOST: Final = 4 << 20
"""Bytes or characters of a prompt or answer that are counted at all; more is estimated."""
PER_MESSAGE: Final = 4
"""What a chat template writes around a message: its opening, its role, its end, a line."""
PER_ANSWER: Final = 3
"""What a chat template writes before the answer."""
_FOLD: Final = 1 << 16
_KINDS: Final[dict[bytes, Kind]] = {path.encode(): kind for kind, path in ROUTES.items()}


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is given: ``texts``, and how many tokens are known to be there beside them."""

    texts: list[str]
    more: int = 0


class UncountableError(Exception):
    """A tokenizer cannot count something: a picture, or what is not OpenAI's."""


def prompt_of(body: RequestBody) -> Prompt:
    """Return what is to be counted of a request. Raises UncountableError."""
    try:
        if memoryview(body.messages):
            return _chat(msgspec.json.decode(body.messages), body.tools)
        given = body.prompt if memoryview(body.prompt) else body.input
        return _given(msgspec.json.decode(given))
    except UNDECODABLE as error:
        raise UncountableError(str(error)) from error


def _chat(messages: Json, tools: msgspec.Raw) -> Prompt:
    if not isinstance(messages, list):
        raise UncountableError("messages")
    texts = [bytes(tools).decode()] if memoryview(tools) else []
    for message in messages:
        if not isinstance(message, dict):
            raise UncountableError("message")
        texts += _content(message.get("content"))
        name = message.get("name")
        if isinstance(name, str):
            texts.append(name)
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                texts += [
                    part
                    for part in (function.get("name"), function.get("arguments"))
                    if isinstance(part, str)
                ]
    return Prompt(texts=texts, more=PER_MESSAGE * len(messages) + PER_ANSWER)


def _content(content: Json) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for part in content if isinstance(content, list) else (content,):
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise UncountableError("a part that is no text")
        texts.append(text)
    return texts


def _given(given: Json) -> Prompt:
    """Return a text, texts, the numbers of tokens, or lists of those."""
    texts: list[str] = []
    numbers = 0
    for each in given if isinstance(given, list) else (given,):
        if isinstance(each, str):
            texts.append(each)
        elif isinstance(each, int):
            numbers += 1
        elif isinstance(each, list) and all(isinstance(one, int) for one in each):
            numbers += len(each)
        else:
            raise UncountableError("a prompt that is no text")
    return Prompt(texts=texts, more=numbers)


def count(tokenizer: TokenCounter, texts: Sequence[str]) -> int:
    """Return how many tokens texts have together. Raises UncountableError."""
    try:
        return sum(tokenizer.count_batch(texts))
    except Exception as error:  # the tokenizers package raises plain Exception
        _LOG.warning("a tokenizer cannot count", reason=str(error))
        raise UncountableError(str(error)) from error


def prompt_count(tokenizer: TokenCounter, body: RequestBody) -> int | None:
    """Return the tokens of a request's prompt; ``None`` for one that cannot be counted, or is too long for it."""
    if body.prompt_bytes > MOST:
        return None
    try:
        prompt = prompt_of(body)
        return max(1, count(tokenizer, prompt.texts) + prompt.more)
    except UncountableError:
        return None


async def counted_prompt(tokenizer: TokenCounter, body: RequestBody) -> int | None:
    """Return what :func:`prompt_count` does; a long prompt is counted beside the event loop."""
    if body.prompt_bytes <= INLINE:
        return prompt_count(tokenizer, body)
    return await asyncio.to_thread(prompt_count, tokenizer, body)


class Said:
    """The texts of an answer: of each choice what it says, what it thinks, the names and arguments of its calls."""

    __slots__ = ("_texts", "size")

    def __init__(self) -> None:
        self._texts: dict[tuple[int, str, int], str] = {}
        self.size = 0
        """Characters."""

    def take(self, events: Iterable[Event]) -> None:
        """Add what tokens hold; other events hold nothing."""
        found: dict[tuple[int, str, int], list[str]] = {}
        for event in events:
            if not isinstance(event, Token):
                continue
            if event.text:
                found.setdefault((event.index, "text", 0), []).append(event.text)
            if event.reasoning:
                found.setdefault((event.index, "reasoning", 0), []).append(event.reasoning)
            for call in event.tool_calls:
                found.setdefault((event.index, "name", call.index), []).append(call.name)
                found.setdefault((event.index, "arguments", call.index), []).append(call.arguments)
        for key, pieces in found.items():
            piece = "".join(pieces)
            self._texts[key] = self._texts.get(key, "") + piece
            self.size += len(piece)

    def texts(self) -> list[str]:
        """Return the texts, each whole."""
        return [text for text in self._texts.values() if text]

    def tokens(self, tokenizer: TokenCounter) -> int | None:
        """Return how many tokens they have; ``None`` where they cannot be counted, or are too long for it."""
        try:
            return None if self.size > MOST else count(tokenizer, self.texts())
        except UncountableError:
            return None

    async def counted(self, tokenizer: TokenCounter) -> int | None:
        """Return what :meth:`tokens` does; long texts are counted beside the event loop."""
        if self.size <= INLINE:
            return self.tokens(tokenizer)
        return await asyncio.to_thread(self.tokens, tokenizer)


class Output:
    """A server's answer, kept as far as it takes to count its tokens.

    Pieces are kept as they passed by, and only their text of a long stream.
    """

    __slots__ = ("_decoder", "_held", "_pieces", "_said", "_streamed", "lost")

    def __init__(self, path: bytes, body: RequestBody, *, streamed: bool) -> None:
        kind = _KINDS.get(path, "chat")
        self._decoder = None
        if kind != "embedding":
            asked = GenerateRequest(
                kind=kind, model=body.model, sampling=Sampling(n=body.n or 1), stream=streamed
            )
            self._decoder = decoder(asked)
        self._streamed = streamed
        self._pieces: list[bytes] = []
        self._held = 0
        self._said = Said()
        self.lost = False
        """Whether it was too long, or not what the protocol promises."""

    @property
    def long(self) -> bool:
        """Whether counting it would hold the event loop up."""
        return self._held + self._said.size > 4 * INLINE

    def keep(self, piece: bytes) -> None:
        """Keep a piece of the answer."""
        if self.lost or self._decoder is None:
            return
        self._pieces.append(piece)
        self._held += len(piece)
        if self._streamed and self._held > _FOLD:
            self._fold()
        elif self._held > MOST:
            self._lose()

    def tokens(self, tokenizer: TokenCounter) -> int | None:
        """Return the tokens of what came; ``None`` for what cannot be counted. May be asked again."""
        self._fold()
        return None if self.lost else self._said.tokens(tokenizer)

    def _fold(self) -> None:
        """Leave of the pieces only their text."""
        if self._decoder is None or not self._pieces:
            return
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        found = self._decoder.feed(data)
        if not self._streamed:
            found = self._decoder.end()
        events = [event for _, event in found]
        self._said.take(events)
        if self._said.size > MOST or any(isinstance(event, Failed) for event in events):
            self._lose()

    def _lose(self) -> None:
        self.lost = True
        self._pieces.clear()
        self._said = Said()


class Tally:
    """Counts a request whose server may not say what it took. ``prompt`` is what was counted of the prompt."""

    __slots__ = ("_counting", "_output", "_prompt", "_tokenizer")

    def __init__(self, tokenizer: TokenCounter, prompt: int) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._output: Output | None = None
        self._counting: asyncio.Future[TokenCount | None] | None = None

    def open(self, path: bytes, body: RequestBody, *, streamed: bool) -> Output:
        """Return where an answer is to be kept from now on; what was kept before does not count."""
        self._output = Output(path, body, streamed=streamed)
        return self._output

    def count(self) -> TokenCount | asyncio.Future[TokenCount | None] | None:
        """Return what the request took, ``None`` where it cannot be counted; a future of that for a long answer."""
        if self._counting is None:
            if self._output is None or not self._output.long:
                return self._count()
            # The caller may leave meanwhile, and ask again: a thread that has begun is the one to wait for.
            self._counting = asyncio.get_running_loop().run_in_executor(None, self._count)
        return self._counting

    async def whole(self, path: bytes, body: RequestBody, answer: bytes) -> TokenCount | None:
        """Return what a request took that has its whole answer; ``None`` where it cannot be counted."""
        self.open(path, body, streamed=False).keep(answer)
        found = self.count()
        return await asyncio.shield(found) if isinstance(found, asyncio.Future) else found

    def _count(self) -> TokenCount | None:
        output = 0 if self._output is None else self._output.tokens(self._tokenizer)
        return None if output is None else TokenCount(input_tokens=self._prompt, output_tokens=output)

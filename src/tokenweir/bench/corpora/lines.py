"""Reading corpus files line by line, with errors that name file, line and reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from tokenweir.core.corpus import Sample
from tokenweir.core.errors import CorpusError
from tokenweir.core.requests import Json, Message, ToolCall


class LineFunction(msgspec.Struct, frozen=True, kw_only=True):
    """The function of a tool call, as OpenAI nests it."""

    name: str = ""
    arguments: str = ""


class LineToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call of an assistant's turn, as OpenAI writes it."""

    id: str = ""
    function: LineFunction = LineFunction()


class LineMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a JSON line."""

    role: str
    content: str | tuple[dict[str, Json], ...] | None = None
    name: str | None = None
    tool_calls: tuple[LineToolCall, ...] = ()
    tool_call_id: str | None = None


class CorpusLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a JSONL corpus; keys it does not know are ignored."""

    prompt: str | None = None
    messages: tuple[LineMessage, ...] = ()
    id: str | int | None = None
    max_tokens: int | None = None
    expected: str | None = None


LineType = TypeVar("LineType", bound=CorpusLine)


def read_bytes(path: Path) -> bytes:
    """Return a corpus file's bytes. Raises CorpusError with the reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}", mend="check the path") from error


def decode_text(path: Path, raw: bytes) -> str:
    """Return ``raw`` as text, without a byte order mark. Raises CorpusError naming the line."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path}:{number}: byte {raw[error.start]:#04x} is no UTF-8", mend="convert the file to UTF-8"
        ) from error


def read_json_lines(path: Path, raw: bytes, kind: type[LineType]) -> Iterator[tuple[int, LineType]]:
    """Yield line number, from 1, and content of every line that is not blank. Raises CorpusError."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorpusError(
                f"{path}:{number}: {_lower(str(error))}", mend="mend or delete the line"
            ) from error


def to_sample(path: Path, number: int, line: CorpusLine) -> Sample:
    """Return the sample of one line. Raises CorpusError where it asks nothing, or asks twice.

    A conversation is asked up to its last user or tool turn; an assistant's turn after it becomes
    ``expected``.
    """
    sample_id = str(number) if line.id is None else str(line.id)
    if (line.prompt is None) == (not line.messages):
        reason = "neither prompt nor messages" if line.prompt is None else "both prompt and messages"
        raise CorpusError(f"{path}:{number}: {reason}", mend='write {"prompt": "…"} or {"messages": […]}')
    if line.max_tokens is not None and line.max_tokens < 1:
        raise CorpusError(f"{path}:{number}: max_tokens {line.max_tokens!r} is below 1")
    if line.prompt is not None:
        if not line.prompt.strip():
            raise CorpusError(f"{path}:{number}: the prompt is empty", mend="delete the line")
        return Sample(id=sample_id, prompt=line.prompt, max_tokens=line.max_tokens, expected=line.expected)
    asked, answer = until_last_question(tuple(map(_message, line.messages)))
    if not asked:
        raise CorpusError(
            f"{path}:{number}: no message has the role user",
            mend="end the conversation with the turn to answer",
        )
    return Sample(
        id=sample_id,
        messages=asked,
        max_tokens=line.max_tokens,
        expected=line.expected or answer,
    )


def until_last_question(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str | None]:
    """Return the messages up to the last user or tool turn, and the assistant's text after it, if any.

    A conversation without a user turn gives no messages.
    """
    if not any(message.role == "user" for message in messages):
        return (), None
    last = max(index for index, message in enumerate(messages) if message.role in {"user", "tool"})
    answers = [message.content for message in messages[last + 1 :] if message.role == "assistant"]
    answer = answers[0] if answers and isinstance(answers[0], str) and answers[0] else None
    return messages[: last + 1], answer


def _message(line: LineMessage) -> Message:
    calls = tuple(
        ToolCall(index=index, id=call.id, name=call.function.name, arguments=call.function.arguments)
        for index, call in enumerate(line.tool_calls)
    )
    return Message(
        role=line.role, content=line.content, name=line.name, tool_calls=calls, tool_call_id=line.tool_call_id
    )


def _lower(reason: str) -> str:
    return reason[:1].lower() + reason[1:]

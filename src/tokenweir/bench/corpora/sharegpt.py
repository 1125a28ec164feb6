"""ShareGPT files: a JSON list of recorded conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from tokenweir.bench.corpora.lines import read_bytes, until_last_question
from tokenweir.core.corpus import Sample
from tokenweir.core.errors import CorpusError
from tokenweir.core.requests import Message

_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn; ``from`` says who speaks."""

    speaker: str = msgspec.field(name="from")
    value: str


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation; some files call its turns ``conversation``."""

    id: str | int | None = None
    conversations: tuple[Turn, ...] = ()
    conversation: tuple[Turn, ...] = ()


def read_sharegpt(path: Path) -> tuple[Sample, ...]:
    """Return one sample per conversation that holds a human's turn, asked up to the last of them.

    The reply that follows becomes ``expected``. A conversation without a human's turn is left out. Raises
    CorpusError with file, entry and reason.
    """
    try:
        entries = msgspec.json.decode(read_bytes(path), type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        message = f"{path}: not a JSON list of conversations: {error}"
        raise CorpusError(
            message, mend="a ShareGPT file is one JSON list; JSON lines end in .jsonl"
        ) from error
    decoder = msgspec.json.Decoder(Conversation)
    samples: list[Sample] = []
    for number, entry in enumerate(entries, start=1):
        try:
            conversation = decoder.decode(entry)
        except msgspec.DecodeError as error:
            raise CorpusError(f"{path}: entry {number}: {error}", mend="mend or delete the entry") from error
        asked, reply = until_last_question(_messages(path, number, conversation))
        if asked:
            name = str(number) if conversation.id is None else str(conversation.id)
            samples.append(Sample(id=name, messages=asked, expected=reply))
    return tuple(samples)


def _messages(path: Path, number: int, conversation: Conversation) -> tuple[Message, ...]:
    messages: list[Message] = []
    for turn in conversation.conversations or conversation.conversation:
        role = _ROLES.get(turn.speaker)
        if role is None:
            raise CorpusError(
                f"{path}: entry {number}: unknown speaker {turn.speaker!r}",
                mend="the speakers are human, gpt and system",
            )
        messages.append(Message(role=role, content=turn.value))
    return tuple(messages)

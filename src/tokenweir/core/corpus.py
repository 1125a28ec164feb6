"""A corpus is an ordered set of samples; hashes tell whether two runs asked the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from tokenweir.core.canonical import canonical_json
from tokenweir.core.requests import Message


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to ask: a ``prompt``, or the ``messages`` of a conversation up to the turn to answer.

    ``max_tokens`` bounds its answer where the sample itself says so. ``expected`` is a known good answer.
    """

    id: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    expected: str | None = None

    @property
    def turns(self) -> int:
        """How many user turns the sample holds, the one to answer included."""
        return 1 if self.prompt is not None else sum(message.role == "user" for message in self.messages)

    @property
    def text(self) -> str:
        """The prompt, or the text of all messages joined by line ends."""
        if self.prompt is not None:
            return self.prompt
        return "\n".join(message_text(message) for message in self.messages)


def message_text(message: Message) -> str:
    """Return the text of one message; of content parts those that are text."""
    if isinstance(message.content, tuple):
        texts = (part.get("text") for part in message.content)
        return "\n".join(text for text in texts if isinstance(text, str))
    return message.content or ""


def sample_hash(sample: Sample) -> str:
    """Return the SHA-256, lower-case hex, of the RFC 8785 JSON of ``sample`` without defaults."""
    return _digest(sample).hex()


def corpus_hash(samples: Iterable[Sample]) -> str:
    """Return the SHA-256, lower-case hex, over the concatenated 32-byte sample hashes, in order."""
    whole = hashlib.sha256()
    for sample in samples:
        whole.update(_digest(sample))
    return whole.hexdigest()


def _digest(sample: Sample) -> bytes:
    return hashlib.sha256(canonical_json(_lean(sample))).digest()


def _lean(sample: Sample) -> object:
    """Return the sample as JSON values without defaults, so that a new field moves no old hash."""
    if not sample.messages:
        return sample
    content: dict[str, object] = msgspec.to_builtins(sample)
    content["messages"] = [
        {name: value for name, value in message.items() if value not in (None, (), [])}
        for message in msgspec.to_builtins(sample.messages)
    ]
    return content

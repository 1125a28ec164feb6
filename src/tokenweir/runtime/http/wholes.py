"""An answer in one piece: its events gathered, then written as OpenAI writes it."""

from __future__ import annotations

from tokenweir.core.events import Token, TokenLogprob, Usage
from tokenweir.core.requests import Json, Kind
from tokenweir.runtime.http.chunks import Head, chat_logprobs, text_logprobs, usage_body


class Choice:
    """One choice as it grows."""

    __slots__ = ("_calls", "_logprobs", "_reasoning", "_text", "finish")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._logprobs: list[TokenLogprob] = []
        self.finish = ""

    def add(self, event: Token) -> None:
        """Take an increment."""
        self._text.append(event.text)
        if event.reasoning:
            self._reasoning.append(event.reasoning)
        for call in event.tool_calls:
            whole = self._calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
            whole["id"] = whole["id"] or call.id
            whole["name"] = whole["name"] or call.name
            whole["arguments"] += call.arguments
        self._logprobs += event.logprobs

    def chat(self, index: int, *, logprobs: bool) -> Json:
        """Return the choice of a chat."""
        text = "".join(self._text)
        message: dict[str, Json] = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for _, call in sorted(self._calls.items())
            ]
        told = chat_logprobs(self._logprobs) if logprobs else None
        return {"index": index, "message": message, "logprobs": told, "finish_reason": self.finish}

    def text(self, index: int, *, logprobs: bool) -> Json:
        """Return the choice of a text completion; a text has no separate reasoning."""
        told = text_logprobs(self._logprobs, 0) if logprobs else None
        text = "".join(self._reasoning) + "".join(self._text)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": self.finish}


class Whole:
    """The choices of an answer, gathered."""

    __slots__ = ("choices",)

    def __init__(self, choices: int) -> None:
        self.choices = [Choice() for _ in range(choices)]

    def body(self, kind: Kind, head: Head, usage: Usage, *, logprobs: bool) -> dict[str, Json]:
        """Return the answer's JSON."""
        chat = kind == "chat"
        return {
            "id": head.id,
            "object": "chat.completion" if chat else "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": [
                one.chat(index, logprobs=logprobs) if chat else one.text(index, logprobs=logprobs)
                for index, one in enumerate(self.choices)
            ],
            "usage": usage_body(usage),
            "system_fingerprint": head.fingerprint,
        }

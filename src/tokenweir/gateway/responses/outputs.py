"""The items of a response's output while they grow: text, reasoning, calls of functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from tokenweir.core.requests import Json

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Body: TypeAlias = dict[str, Json]


class _Words:
    """What message and reasoning share: one part of text that grows. ``place`` is the item's among the outputs."""

    kind = ""
    prefix = ""
    part_kind = ""
    event = ""

    def __init__(self, suffix: str, place: int) -> None:
        self.id = f"{self.prefix}_{suffix}o{place}"
        self.status: ItemStatus = "in_progress"
        self._place = place
        self._pieces: list[str] = []
        self._begun = False

    @property
    def text(self) -> str:
        """What came so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def opened(self) -> Iterator[tuple[str, Body]]:
        """Yield the events that begin it."""
        yield "response.output_item.added", {"output_index": self._place, "item": self.item()}
        yield "response.content_part.added", {**self._where(), "part": self.part("")}
        self._begun = True

    def add(self, text: str) -> tuple[str, Body]:
        """Take more text, and return the event of it."""
        self._pieces.append(text)
        return f"response.{self.event}.delta", {**self._where(), "delta": text, **self.more()}

    def closed(self, status: ItemStatus) -> Iterator[tuple[str, Body]]:
        """Yield the events that end it."""
        self.status = status
        text = self.text
        yield f"response.{self.event}.done", {**self._where(), "text": text, **self.more()}
        yield "response.content_part.done", {**self._where(), "part": self.part(text)}
        yield "response.output_item.done", {"output_index": self._place, "item": self.item()}

    def item(self) -> Body:
        """Return the item as it is now."""
        content: list[Json] = [self.part(self.text)] if self._begun else []
        return {"id": self.id, "type": self.kind, "status": self.status, "content": content}

    def part(self, text: str) -> Body:
        """Return the part that holds a text."""
        return {"type": self.part_kind, "text": text}

    def more(self) -> Body:
        """Return what the events of text have beside it."""
        return {}

    def _where(self) -> Body:
        return {"item_id": self.id, "output_index": self._place, "content_index": 0}


class Message(_Words):
    """The assistant's text."""

    kind = "message"
    prefix = "msg"
    part_kind = "output_text"
    event = "output_text"

    def item(self) -> Body:
        """Return the item as it is now."""
        return {**super().item(), "role": "assistant"}

    def part(self, text: str) -> Body:
        """Return the part that holds a text."""
        return {**super().part(text), "annotations": [], "logprobs": []}

    def more(self) -> Body:
        """Return the log probabilities, of which there are none."""
        return {"logprobs": []}


class Thinking(_Words):
    """What the model thought."""

    kind = "reasoning"
    prefix = "rs"
    part_kind = "reasoning_text"
    event = "reasoning_text"

    def item(self) -> Body:
        """Return the item as it is now."""
        return {**super().item(), "summary": []}


class Call:
    """A call of a function."""

    def __init__(self, suffix: str, place: int, call_id: str, name: str) -> None:
        self.id = f"fc_{suffix}o{place}"
        self.status: ItemStatus = "in_progress"
        self.name = name
        self._call_id = call_id or f"call_{suffix}o{place}"
        self._place = place
        self._pieces: list[str] = []

    @property
    def arguments(self) -> str:
        """What came so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def opened(self) -> Iterator[tuple[str, Body]]:
        """Yield the event that begins it."""
        yield "response.output_item.added", {"output_index": self._place, "item": self.item()}

    def add(self, arguments: str) -> tuple[str, Body]:
        """Take more of the arguments, and return the event of it."""
        self._pieces.append(arguments)
        return "response.function_call_arguments.delta", {**self._where(), "delta": arguments}

    def closed(self, status: ItemStatus) -> Iterator[tuple[str, Body]]:
        """Yield the events that end it."""
        self.status = status
        told: Body = {**self._where(), "name": self.name, "arguments": self.arguments}
        yield "response.function_call_arguments.done", told
        yield "response.output_item.done", {"output_index": self._place, "item": self.item()}

    def item(self) -> Body:
        """Return the item as it is now."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self.name,
            "arguments": self.arguments,
        }

    def _where(self) -> Body:
        return {"item_id": self.id, "output_index": self._place}


Output: TypeAlias = Message | Thinking | Call

"""Text out: chat and text completions, streamed and whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing
from pathlib import PurePath
from typing import Final, cast

import msgspec

from tokenweir.asgi.call import Call
from tokenweir.asgi.problems import failure
from tokenweir.core.errors import ParameterError, UnavailableError, WeirError
from tokenweir.core.events import Accepted, Cancelled, Completed, Degraded, Event, Failed, Token, Usage
from tokenweir.core.requests import GenerateRequest, Json, Kind
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.http.chunks import DONE, ChatChunks, Chunks, Head, TextChunks
from tokenweir.runtime.http.door import Door
from tokenweir.runtime.http.metrics import Meter
from tokenweir.runtime.http.wholes import Whole
from tokenweir.runtime.normalise.requests import Ask, normalise

_PREFIXES: Final = {"chat": "chatcmpl-", "completion": "cmpl-"}
_NS_PER_S: Final = 1_000_000_000


async def chat(door: Door, call: Call) -> None:
    """Answer ``POST /v1/chat/completions``."""
    await _generate(door, call, "chat")


async def completion(door: Door, call: Call) -> None:
    """Answer ``POST /v1/completions``."""
    await _generate(door, call, "completion")


async def _generate(door: Door, call: Call, kind: Kind) -> None:
    ask = normalise(kind, await door.json(call), door.image_limits)
    card = door.card(ask.model)
    _check_draft(ask, card)
    ask = msgspec.structs.replace(
        ask, requests=tuple(msgspec.structs.replace(one, model=card.name) for one in ask.requests)
    )
    with door.metered(call, card.name) as meter:
        head = Head(
            id=_PREFIXES[kind] + call.id.partition("_")[2],
            created=door.clock.wall_ns() // _NS_PER_S,
            model=card.name,
            fingerprint=door.fingerprint(card),
        )
        if door.log_prompts:
            meter.prompt = [_prompt(one) for one in ask.requests]
            meter.answer = {}
        answer = _Streamed(call, ask, head, meter) if ask.stream else _Gathered(call, ask, head, meter)
        await _while_connected(call, _run(door, ask, answer))
        if answer.unfinished:
            meter.outcome = "gone"


def _prompt(request: GenerateRequest) -> Json:
    """Return what a request asks, as the log tells it: images only by their places."""
    if request.kind == "completion":
        return request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    turns: list[Json] = []
    for turn in request.messages:
        said: Json = turn.content if isinstance(turn.content, str) else None
        if isinstance(turn.content, tuple):
            said = [part.get("text", "[image]") for part in turn.content]
        turns.append({"role": turn.role, "content": said})
    return turns


def _check_draft(ask: Ask, card: ModelCard) -> None:
    """Refuse another draft than the one that the model is paired with: a model has one."""
    wanted = ask.draft_model
    if wanted is None or (card.draft and wanted in {card.draft, PurePath(card.draft).name}):
        return
    has = f"its draft is {PurePath(card.draft).name!r}" if card.draft else "it is loaded without a draft"
    raise ParameterError(
        f"the model {card.name!r} cannot use the draft {wanted!r}: {has}",
        param="draft_model",
        mend="load the model with that draft, or leave it out",
    )


async def _while_connected(call: Call, work: Coroutine[None, None, None]) -> None:
    """Await ``work``; when the client goes away first, cancel it and return."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            watch = group.create_task(_cancel_when_gone(call, task))
            task.add_done_callback(lambda _: watch.cancel())
    except ExceptionGroup as group:
        raise _first(group) from None


async def _cancel_when_gone(call: Call, task: asyncio.Task[None]) -> None:
    await call.gone()
    task.cancel()


async def _run(door: Door, ask: Ask, answer: _Answer) -> None:
    """Let the engine work on every prompt of the request and hand its events to the answer."""
    if len(ask.requests) == 1:
        await _relay(door, ask, 0, answer)
    else:
        async with asyncio.TaskGroup() as group:
            for at in range(len(ask.requests)):
                group.create_task(_relay(door, ask, at, answer))
    await answer.close()


async def _relay(door: Door, ask: Ask, at: int, answer: _Answer) -> None:
    """Hand the events of one prompt over. Raises the error that a bad end means."""
    request: GenerateRequest = ask.requests[at]
    base = at * ask.n
    events: AsyncGenerator[Event] = door.serving.generate(request, ask.options)
    ended = False
    async with aclosing(events):
        async for event in events:
            if type(event) is Token:
                answer.hear(event, base + event.index)
                await answer.token(event, base + event.index)
                continue
            match event:
                case Usage():
                    answer.add_usage(event, at)
                case Completed():
                    ended = True
                    answer.finish(base, ask.n, event)
                case Failed() | Cancelled():
                    raise failure(event)
                case Degraded():
                    await answer.degraded(event)
                case Accepted():
                    answer.meter.engine_id = event.request_id
                case _:
                    pass
    if not ended:
        raise UnavailableError("the engine stopped without saying how the answer ended", mend="send it again")


class _Answer:
    """What streamed and gathered answers share. ``unfinished`` until the client has all of it."""

    def __init__(self, call: Call, ask: Ask, head: Head, meter: Meter) -> None:
        self.call = call
        self.ask = ask
        self.head = head
        self.meter = meter
        self.unfinished = True
        self.degradations: list[str] = []
        self._usages: dict[int, Usage] = {}

    @property
    def choices(self) -> int:
        """Choices over all prompts."""
        return self.ask.n * len(self.ask.requests)

    @property
    def usage(self) -> Usage:
        """The tokens of all prompts together."""
        found = list(self._usages.values())
        return found[0] if len(found) == 1 else _sum(found)

    def hear(self, event: Token, index: int) -> None:
        """Keep an increment's text where the log shall tell it."""
        heard = self.meter.answer
        if heard is not None:
            called = "".join(call.name + call.arguments for call in event.tool_calls)
            heard[index] = heard.get(index, "") + event.reasoning + event.text + called

    def add_usage(self, usage: Usage, at: int) -> None:
        """Take the usage of a prompt; a later one replaces an earlier one."""
        self._usages[at] = usage

    async def token(self, event: Token, index: int) -> None:
        """Take an increment of the choice ``index``."""
        raise NotImplementedError

    def finish(self, base: int, count: int, event: Completed) -> None:
        """Take the end of ``count`` choices from ``base``."""
        raise NotImplementedError

    async def degraded(self, event: Degraded) -> None:
        """Tell the client that it gets less than it asked for."""
        self.degradations.append(event.what)

    async def close(self) -> None:
        """Send what is left."""
        raise NotImplementedError


class _Streamed(_Answer):
    """An answer that goes out as it comes. Its head waits for the first token, so that errors have a status."""

    def __init__(self, call: Call, ask: Ask, head: Head, meter: Meter) -> None:
        super().__init__(call, ask, head, meter)
        made = ChatChunks if ask.kind == "chat" else TextChunks
        self._chunks: Chunks = made(head, include_usage=ask.include_usage)
        self._reasons: dict[int, str] = {}

    async def token(self, event: Token, index: int) -> None:
        """Send a chunk."""
        piece = self._chunks.token(event, index)
        if not self.call.begun:
            piece = await self._begin() + piece
        self.meter.token(event.count)
        await self.call.write(piece)

    def finish(self, base: int, count: int, event: Completed) -> None:
        """Keep the reasons for the end of the stream."""
        self._reasons.update(enumerate(_reasons(event, count), base))

    async def degraded(self, event: Degraded) -> None:
        """Say it in a comment, once the stream has begun."""
        await super().degraded(event)
        if self.call.begun:
            await self.call.write(b": degraded: %b\n\n" % _line(event.what))

    async def close(self) -> None:
        """Send the finish reasons, the usage if it was asked for, and the end."""
        first = b"" if self.call.begun else await self._begin()
        ends = [self._chunks.finish(index, reason) for index, reason in sorted(self._reasons.items())]
        usage = self._chunks.usage(self.usage) if self.ask.include_usage else b""
        self.unfinished = False
        self.meter.done(self.usage)
        await self.call.end_stream(b"".join((first, *ends, usage, DONE)))

    async def _begin(self) -> bytes:
        await self.call.begin_stream(_degraded_header(self.degradations))
        return self._chunks.opening(self.choices)


class _Gathered(_Answer):
    """An answer that goes out once it is whole."""

    def __init__(self, call: Call, ask: Ask, head: Head, meter: Meter) -> None:
        super().__init__(call, ask, head, meter)
        self._whole = Whole(self.choices)

    async def token(self, event: Token, index: int) -> None:
        """Keep an increment."""
        self.meter.token(event.count)
        self._whole.choices[index].add(event)

    def finish(self, base: int, count: int, event: Completed) -> None:
        """Keep the reasons."""
        for index, reason in enumerate(_reasons(event, count), base):
            self._whole.choices[index].finish = reason

    async def close(self) -> None:
        """Send all of it."""
        body = self._whole.body(self.ask.kind, self.head, self.usage, logprobs=self.ask.logprobs)
        self.unfinished = False
        self.meter.done(self.usage)
        await self.call.answer_json(body, headers=_degraded_header(self.degradations))


def _reasons(event: Completed, count: int) -> list[str]:
    """Return why each choice ended: ``data["finish_reasons"]`` of the event where they differ."""
    told = event.data.get("finish_reasons")
    if isinstance(told, list) and len(told) == count:
        return [str(one) for one in told]
    return [event.finish_reason or "stop"] * count


def _sum(usages: list[Usage]) -> Usage:
    def total(name: str) -> int | None:
        counts: list[int | None] = [getattr(one, name) for one in usages]
        told = [one for one in counts if one is not None]
        return sum(told) if told else None

    return Usage(
        seq=0,
        input_tokens=total("input_tokens"),
        output_tokens=total("output_tokens"),
        cached_tokens=total("cached_tokens"),
        reasoning_tokens=total("reasoning_tokens"),
        drafted_tokens=total("drafted_tokens"),
        accepted_tokens=total("accepted_tokens"),
    )


def _degraded_header(what: list[str]) -> list[tuple[bytes, bytes]]:
    return [(b"x-weir-degraded", _line("; ".join(what)))] if what else []


def _line(text: str) -> bytes:
    return " ".join(text.split()).encode("ascii", "replace")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that says most of a group: ours before any other."""
    flat = list(_leaves(group))
    return next((one for one in flat if isinstance(one, WeirError)), flat[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(cast("BaseExceptionGroup[BaseException]", one))
        else:
            yield one

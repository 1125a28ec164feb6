"""Publishing many messages at once over one channel: one write for all of them, and one future for their confirms.

The client's own call costs a task, a future and three frame objects for each message, many times what the broker takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from typing import Final, Protocol, cast

import msgspec
import pamqp.frame
from aiormq import Channel
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.commands import Basic

_METHOD_BASIC: Final = 60
_HEADER: Final = 2
_BODY: Final = 3
_SHORT_MOST: Final = 255
_END: Final = b"\xce"
_FRAME: Final = struct.Struct(">BHI").pack
_CONTENT: Final = struct.Struct(">HHQH").pack
_FLAG_TYPE: Final = 1 << 15
_FLAG_MODE: Final = 1 << 12
_FLAG_EXPIRATION: Final = 1 << 8
_FLAG_ID: Final = 1 << 7
_TYPE: Final = "application/msgpack"
_DURABLE: Final = b"\x02"
_CLOSED: Final = "the channel was closed before all was confirmed"


class Message(msgspec.Struct, frozen=True):
    """What is published: the routing key, an id that no other message in flight has, and the body."""

    key: str
    id: str
    body: bytes


class _Sending(Protocol):
    """What is used of the client's channel, whose own types are incomplete."""

    write_queue: asyncio.Queue[ChannelFrame]
    confirmations: MutableMapping[int, _Confirms]

    def create_future(self) -> asyncio.Future[None]:
        """Return one that fails when the channel is closed."""
        ...


class _Confirms:
    """Stands in the channel's table of confirms for each message of a batch, where a future would."""

    __slots__ = ("_failed", "_left", "future")

    def __init__(self, count: int, future: asyncio.Future[None]) -> None:
        self._left = count
        self._failed: Exception | None = None
        self.future = future

    def done(self) -> bool:
        """A batch takes each of its confirms."""
        return False

    def set_result(self, _: object) -> None:
        """Take one confirm."""
        self._left -= 1
        if self._left == 0 and not self.future.done():
            if self._failed is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(self._failed)

    def set_exception(self, error: Exception) -> None:
        """Take one that was refused, or that no queue takes."""
        self._failed = self._failed or error
        self.set_result(None)


async def publish(
    channel: Channel, exchange: str, messages: Sequence[Message], *, expiration: str | None = None
) -> None:
    """Publish durable messages; returns once the broker has confirmed each.

    Without an exchange they go to the queue that their key names, which must be there.

    Raises:
        AMQPError: the broker refused one, no queue takes one, or the channel was closed.
    """
    if not messages:
        return
    sending = cast("_Sending", channel)
    async with _told(channel):
        async with channel.lock:
            await sending.write_queue.put(
                ChannelFrame(_frames(channel, exchange, messages, expiration), should_close=False)
            )
            # Nothing is awaited from here to the end of the block: no confirm can come before its entry.
            future = sending.create_future()
            confirms = _Confirms(len(messages), future)
            first = channel.delivery_tag + 1
            channel.delivery_tag += len(messages)
            for tag, message in enumerate(messages, first):
                sending.confirmations[tag] = confirms
                channel.message_id_delivery_tag[message.id] = tag
        try:
            await future
        finally:
            for tag, message in enumerate(messages, first):
                if channel.message_id_delivery_tag.get(message.id) == tag:
                    del channel.message_id_delivery_tag[message.id]


@contextlib.asynccontextmanager
async def _told(channel: Channel) -> AsyncGenerator[None]:
    """Tell a channel that was closed from a caller that was cancelled: the client raises the same for both."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if channel.is_closed and task is not None and not task.cancelling():
            raise ChannelInvalidStateError(_CLOSED) from None
        raise
    except Exception as error:
        if type(error) is Exception:
            # What the client leaves in a future of a channel that ends without a reason.
            raise ChannelInvalidStateError(_CLOSED) from error
        raise


def _frames(channel: Channel, exchange: str, messages: Sequence[Message], expiration: str | None) -> bytes:
    number, most = channel.number, channel.max_content_size
    return b"".join(
        frames(messages, channel=number, exchange=exchange, expiration=expiration, most_bytes=most)
    )


def frames(
    messages: Sequence[Message], *, channel: int, exchange: str, expiration: str | None, most_bytes: int
) -> list[bytes]:
    """Return messages as AMQP's frames, whose bodies have up to ``most_bytes``.

    Source: AMQP 0-9-1, sections 2.3.5 and 4.2.6.
    """
    flags = _FLAG_TYPE | _FLAG_MODE | _FLAG_ID
    properties = _short(_TYPE) + _DURABLE
    if expiration is not None:
        flags |= _FLAG_EXPIRATION
        properties += _short(expiration)
    methods: dict[str, bytes] = {}
    parts: list[bytes] = []
    for message in messages:
        method = methods.get(message.key)
        if method is None:
            basic = Basic.Publish(exchange=exchange, routing_key=message.key, mandatory=not exchange)
            method = methods[message.key] = pamqp.frame.marshal(basic, channel)
        body = message.body
        header = _CONTENT(_METHOD_BASIC, 0, len(body), flags) + properties + _short(message.id)
        parts += (method, _FRAME(_HEADER, channel, len(header)), header, _END)
        for begin in range(0, len(body), most_bytes):
            piece = body[begin : begin + most_bytes]
            parts += (_FRAME(_BODY, channel, len(piece)), piece, _END)
    return parts


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > _SHORT_MOST:
        raise ValueError(f"{text!r} is longer than {_SHORT_MOST} bytes")
    return bytes((len(data),)) + data

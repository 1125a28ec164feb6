"""Messages for RabbitMQ are written as the client's own marshalling would write them."""

from __future__ import annotations

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from tokenweir.stores.gateway.rabbitmq.publishing import Message, frames

WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80)
MOST = 64


def _by_client(messages: list[Message], exchange: str, expiration: str | None) -> bytes:
    written: list[bytes] = []
    for message in messages:
        properties = Basic.Properties(
            content_type="application/msgpack",
            delivery_mode=2,
            message_id=message.id,
            expiration=expiration,
        )
        method = Basic.Publish(exchange=exchange, routing_key=message.key, mandatory=not exchange)
        written.append(pamqp.frame.marshal(method, 7))
        written.append(pamqp.frame.marshal(ContentHeader(0, len(message.body), properties), 7))
        written += [
            pamqp.frame.marshal(ContentBody(message.body[begin : begin + MOST]), 7)
            for begin in range(0, len(message.body), MOST)
        ]
    return b"".join(written)


@given(
    messages=st.lists(st.builds(Message, WORDS, WORDS, st.binary(max_size=3 * MOST)), max_size=4),
    exchange=st.sampled_from(["", "jobs.delay.500"]),
    expiration=st.one_of(st.none(), st.integers(1, 10**9).map(str)),
)
def test_frames_are_those_of_the_client(
    messages: list[Message], exchange: str, expiration: str | None
) -> None:
    written = frames(messages, channel=7, exchange=exchange, expiration=expiration, most_bytes=MOST)
    assert b"".join(written) == _by_client(messages, exchange, expiration)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        frames([Message("q", "x" * 256, b"")], channel=1, exchange="", expiration=None, most_bytes=MOST)

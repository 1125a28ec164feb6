from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ProtocolError
from tokenweir.runtime.bridge.framing import FrameReader, seal


def framed(payload: bytes) -> bytes:
    return bytes(seal(bytearray(4) + payload))


@given(st.lists(st.binary(max_size=300), max_size=20), st.lists(st.integers(1, 50), min_size=1))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(framed(payload) for payload in payloads)
    reader = FrameReader()
    got: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        got += reader.feed(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert got == payloads
    assert reader.pending_bytes == 0


@given(st.binary(min_size=1, max_size=50), st.data())
def test_a_cut_stream_is_known_as_cut(payload: bytes, data: st.DataObject) -> None:
    stream = framed(payload)
    cut = data.draw(st.integers(1, len(stream) - 1))
    reader = FrameReader()
    assert list(reader.feed(stream[:cut])) == []
    assert reader.pending_bytes == cut


def test_a_frame_may_be_as_long_as_allowed_and_no_longer() -> None:
    reader = FrameReader(max_bytes=10)
    assert list(reader.feed(framed(b"x" * 10))) == [b"x" * 10]
    with pytest.raises(ProtocolError, match="announces 11 bytes; at most 10"):
        list(reader.feed(framed(b"x" * 11)))


def test_a_message_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ProtocolError, match="a message of 11 bytes is too long"):
        seal(bytearray(4 + 11), max_bytes=10)


def test_a_long_stream_of_frames_does_not_pile_up() -> None:
    reader = FrameReader()
    stream = framed(b"x" * 700_000)
    # Every feed ends inside a frame, so the buffer is never found empty.
    assert list(reader.feed(stream[:-1])) == []
    for _ in range(20):
        assert len(list(reader.feed(stream[-1:] + stream[:-1]))) == 1
        assert reader.pending_bytes == len(stream) - 1
        held = len(reader._data)  # pyright: ignore[reportPrivateUsage]
        assert held <= 4 * len(stream)

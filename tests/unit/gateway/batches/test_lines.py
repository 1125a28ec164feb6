from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ParameterError
from tokenweir.core.ids import format_id, parse_id
from tokenweir.gateway.batches.lines import (
    RawLine,
    TooLongError,
    file_of,
    raw_lines,
    request_of,
    understood,
)

BATCH = bytes.fromhex("01890a5d96de7000b97ac7e9d5c3a1f0")
AT = 1_700_000_000_000_000_000


def split(data: bytes, cuts: list[int], *, most_bytes: int = 1000) -> list[RawLine]:
    async def pieces() -> AsyncGenerator[bytes]:
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for first, last in pairwise(edges):
            yield data[first:last]

    async def work() -> list[RawLine]:
        return [line async for line in raw_lines(pieces(), most_bytes=most_bytes)]

    return asyncio.run(work())


@given(
    st.lists(st.sampled_from([b"", b"  ", b"a", b"bb\r", b"\xc3\xbc"]), max_size=8),
    st.booleans(),
    st.lists(st.integers(0, 40), max_size=5),
)
def test_lines_keep_their_numbers_however_the_file_is_cut(
    lines: list[bytes],
    ended: bool,  # noqa: FBT001
    cuts: list[int],
) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    wanted = [RawLine(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    assert split(data, cuts) == wanted


@pytest.mark.parametrize("data", [b"ok\n" + b"x" * 11, b"ok\n" + b"x" * 11 + b"\nmore\n"])
def test_a_line_that_never_ends_is_not_gathered(data: bytes) -> None:
    with pytest.raises(TooLongError, match="line 2"):
        split(data, list(range(0, len(data), 3)), most_bytes=10)


def test_a_line_has_always_the_same_request_and_no_other_has_it() -> None:
    requests = [request_of(BATCH, AT, number) for number in range(1, 2000)]
    assert requests == [request_of(BATCH, AT, number) for number in range(1, 2000)]
    assert len(set(requests)) == len(requests)
    assert set(requests).isdisjoint(request_of(BATCH[::-1], AT, number) for number in range(1, 2000))
    # They lie in the user's history in the order of the lines, and are ids as others are.
    assert requests == sorted(requests)
    assert parse_id(format_id("req", int.from_bytes(requests[0], "big"))).at // 1_000_000 == AT // 1_000_000
    assert file_of(BATCH, AT, "output") != file_of(BATCH, AT, "error")


def test_what_is_wrong_with_a_line_is_told_with_its_number() -> None:
    for data, said in (
        (b'{"method": "POST", "url": "/v1/embeddings", "body": {}}', "line 7 has no 'custom_id'"),
        (b"[]", "line 7 is no JSON object"),
        (
            b'{"custom_id": "a", "method": "GET", "url": "/v1/embeddings", "body": {}}',
            "the method of line 7 is 'GET'",
        ),
        (
            b'{"custom_id": "a", "method": "POST", "url": "/v1/x", "body": {}}',
            "the url of line 7 is '/v1/x', and the batch is of /v1/embeddings",
        ),
    ):
        with pytest.raises(ParameterError) as caught:
            understood(RawLine(7, data), "/v1/embeddings")
        assert caught.value.message.startswith(said)


@given(st.binary(max_size=60))
def test_whatever_a_line_is_it_is_understood_or_refused(data: bytes) -> None:
    with pytest.raises(ParameterError):
        understood(RawLine(1, data), "/v1/embeddings")

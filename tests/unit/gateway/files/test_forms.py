from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.asgi.problems import ContentTypeError
from tokenweir.core.errors import ParameterError
from tokenweir.gateway.files.forms import Form, FormReader, boundary_of


def form_of(contents: bytes, *, name: str = "a.bin", boundary: bytes = b"B") -> bytes:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: x/y'
    return (
        b'--%b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n' % boundary
        + b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head.encode(), contents)
        + b"--%b--\r\n" % boundary
    )


def read(data: bytes, cuts: list[int], boundary: bytes = b"B") -> tuple[Form, bytes]:
    taken: list[bytes] = []

    async def take(piece: bytes) -> None:
        taken.append(piece)

    async def pieces() -> AsyncGenerator[bytes]:
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for first, last in pairwise(edges):
            yield data[first:last]

    async def work() -> Form:
        return await FormReader(boundary, take).read(pieces())

    return asyncio.run(work()), b"".join(taken)


lookalikes = st.lists(
    st.one_of(st.binary(max_size=20), st.sampled_from([b"\r\n--B", b"--B--", b"\r\n", b"\r\n--", b"\r"])),
    max_size=8,
)


@given(lookalikes.map(b"".join), st.lists(st.integers(0, 400), max_size=6))
def test_contents_are_what_was_sent_however_the_form_is_cut(contents: bytes, cuts: list[int]) -> None:
    boundary = b"B0undary"
    form, taken = read(form_of(contents, boundary=boundary), cuts, boundary)
    assert taken == contents
    assert (form.fields, form.file_name) == ({"purpose": "batch"}, "a.bin")


def test_names_are_read_as_utf_8() -> None:
    assert read(form_of(b"x", name="Flüsse.jsonl"), [])[0].file_name == "Flüsse.jsonl"


@given(st.binary(max_size=200))
def test_what_is_no_form_is_told(data: bytes) -> None:
    with pytest.raises(ParameterError):
        read(data, [])


@pytest.mark.parametrize(
    "kind", [None, b"", b"application/json", b"multipart/form-data", b"multipart/form-data; boundary="]
)
def test_a_form_has_a_boundary(kind: bytes | None) -> None:
    with pytest.raises(ContentTypeError):
        boundary_of(kind)


def test_a_boundary_may_be_quoted() -> None:
    assert boundary_of(b'multipart/form-data; boundary="a b"') == b"a b"

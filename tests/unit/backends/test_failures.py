from __future__ import annotations

import pytest

from tokenweir.backends.failures import complaint, http_error, quote
from tokenweir.core.errors import (
    EndpointError,
    OverloadedError,
    RefusedError,
    UnreachableError,
    UpstreamError,
)
from tokenweir.ports.backend import HttpResponse


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0, UnreachableError),
        (400, UpstreamError),
        (401, RefusedError),
        (403, RefusedError),
        (404, RefusedError),
        (429, OverloadedError),
        (500, UpstreamError),
        (503, OverloadedError),
    ],
)
def test_the_status_decides_the_class(status: int, kind: type[EndpointError]) -> None:
    error = http_error(HttpResponse(status=status, body=b'{"error":{"message":"a\\n b"}}'))
    assert type(error) is kind
    assert error.mend or status == 400
    if status:
        assert error.message == f"the server answered {status}: a b"


def test_a_key_is_asked_for() -> None:
    assert "--key env:NAME" in http_error(HttpResponse(status=401)).mend


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "2"}, 2_000_000_000),
        ({"retry-after": "0.5"}, 500_000_000),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        (
            {"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"},
            10_000_000_000,
        ),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 -0000", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], wait: int | None) -> None:
    error = http_error(HttpResponse(status=429, headers=headers))
    assert isinstance(error, OverloadedError)
    assert error.retry_after_ns == wait


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","code":"x"}}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"error":{"why":1}}', '{"why":1}'),
        (b'{"object":"error","message":"m","code":400}', "m"),
        (b'{"detail":[{"loc":1}]}', '[{"loc":1}]'),
        (b'{"detail":"Not Found"}', "Not Found"),
    ],
)
def test_every_form_of_error_is_known(body: bytes, message: str) -> None:
    said = complaint(body)
    assert said is not None
    assert said.message == message


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"{}", b'{"error":null}', b'{"choices":[],"message":"m"}']
)
def test_anything_else_is_no_error(body: bytes) -> None:
    assert complaint(body) is None


def test_a_quote_is_one_short_line() -> None:
    assert quote("a\n\t b") == "a b"
    assert len(quote("x" * 1000)) == 300

from __future__ import annotations

import base64
import io
import struct

import pytest
from PIL import Image

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json
from tokenweir.runtime.images import ImageLimits, check, data_url, facts_of
from tokenweir.runtime.normalise.requests import normalise

LIMITS = ImageLimits(count=2, size_bytes=50_000, pixels=10_000)


def picture(format_name: str, size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(out, format_name, **options)
    return out.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def body(*urls: str) -> dict[str, Json]:
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, *parts]}]}


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("size", [(60, 40), (1, 1), (99, 100)])
def test_the_size_is_known_without_decoding(format_name: str, size: tuple[int, int]) -> None:
    facts = facts_of(picture(format_name, size))
    assert facts == (format_name.lower(), *size)


def test_webp_of_every_kind() -> None:
    assert facts_of(picture("WEBP", lossless=True)) == ("webp", 60, 40)
    frames = [Image.new("RGB", (60, 40), (n, n, n)) for n in (0, 255)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    assert facts_of(out.getvalue()) == ("webp", 60, 40)


def test_a_jpeg_with_a_long_head_is_walked() -> None:
    plain = picture("JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 5_000) + b"\xff" * 4_998
    assert facts_of(plain[:2] + comment + plain[2:]) == ("jpeg", 60, 40)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_file_that_ends_in_its_head_is_broken(format_name: str) -> None:
    for length in range(8, 26, 3):
        with pytest.raises(ParameterError, match=r"cannot be read|pixels"):
            check(
                picture(format_name)[:length] if format_name != "GIF" else picture(format_name)[:9],
                "p",
                LIMITS,
            )


def test_what_is_no_image_is_broken() -> None:
    with pytest.raises(ParameterError) as caught:
        data_url(url(b"hello, I am text"), "p", LIMITS)
    assert caught.value.reason == "invalid_image"


@pytest.mark.parametrize("given", ["http://somewhere/x.png", "data:image/png,abc", "file:///etc/passwd", ""])
def test_nothing_is_fetched(given: str) -> None:
    with pytest.raises(ParameterError) as caught:
        normalise("chat", body(given), LIMITS)
    assert caught.value.reason == "unsupported_image_url"
    assert caught.value.param == "messages[0].content[1].image_url.url"


def test_broken_base64_is_told_apart() -> None:
    with pytest.raises(ParameterError, match="base64"):
        data_url("data:image/png;base64,@@@@", "p", LIMITS)


def test_limits_hold() -> None:
    for data in (picture("PNG", (101, 100)), b"\x89PNG" + bytes(LIMITS.size_bytes)):
        with pytest.raises(ParameterError) as caught:
            normalise("chat", body(url(data)), LIMITS)
        assert caught.value.reason == "image_too_large"
    good = url(picture("PNG"))
    with pytest.raises(ParameterError) as caught:
        normalise("chat", body(good, good, good), LIMITS)
    assert caught.value.reason == "too_many_images"
    content = normalise("chat", body(good, good), LIMITS).requests[0].messages[0].content
    assert content == (
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": good}},
        {"type": "image_url", "image_url": {"url": good}},
    )

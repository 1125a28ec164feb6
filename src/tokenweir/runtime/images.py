"""Images in a request: taken out of their data URLs, and their size known before anything decodes them."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Final, NamedTuple

import msgspec

from tokenweir.core.errors import ParameterError

_DATA_URL: Final = re.compile(r"data:(image/[a-zA-Z0-9.+-]+)?(;[a-zA-Z0-9=.+-]+)*;base64,", re.ASCII)
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8"
# Start-of-frame markers hold the size; C4, C8 and CC in their range mean something else.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD8)})


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may hold: images, bytes of one encoded image, and pixels of one."""

    count: int = 16
    size_bytes: int = 16 << 20
    pixels: int = 32_000_000


class Facts(NamedTuple):
    """What an image's first bytes tell."""

    format: str
    width: int
    height: int


def data_url(url: str, param: str, limits: ImageLimits) -> bytes:
    """Return the file inside a data URL, known to be an image within the limits.

    Raises:
        ParameterError: it is no data URL (nothing is fetched), no image that is known, broken, or too large.
    """
    head = _DATA_URL.match(url)
    if head is None:
        shown = url if len(url) <= 60 else url[:59] + "…"  # noqa: PLR2004 - a message stays one line
        raise ParameterError(
            f"the image {shown!r} is no data URL with base64 content",
            param=param,
            reason="unsupported_image_url",
            mend="send data:image/png;base64,…: nothing is fetched from elsewhere",
        )
    if (len(url) - head.end()) * 3 // 4 > limits.size_bytes + 2:
        raise _too_large(param, f"is longer than {limits.size_bytes} bytes")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _broken(param, f"its base64 is broken: {error}") from error
    check(data, param, limits)
    return data


def check(data: bytes, param: str, limits: ImageLimits) -> Facts:
    """Return what an encoded image is. Raises ParameterError as :func:`data_url` does."""
    if len(data) > limits.size_bytes:
        raise _too_large(param, f"has {len(data)} bytes; the most is {limits.size_bytes}")
    try:
        facts = facts_of(data)
    except (struct.error, IndexError) as error:
        raise _broken(param, "it ends before its size is told") from error
    if facts is None:
        raise _broken(param, "it is no PNG, JPEG, GIF or WebP file")
    if facts.width <= 0 or facts.height <= 0:
        raise _broken(param, f"it is {facts.width} × {facts.height} pixels")
    if facts.width * facts.height > limits.pixels:
        raise _too_large(
            param, f"is {facts.width} × {facts.height} pixels; the most is {limits.pixels} altogether"
        )
    return facts


def facts_of(data: bytes) -> Facts | None:
    """Return format and size by the file's head, or ``None`` for an unknown format.

    Raises struct.error or IndexError where the file ends too early.
    """
    if data.startswith(_PNG):
        width, height = struct.unpack_from(">II", data, 16)
        return Facts("png", width, height)
    if data.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", data, 6)
        return Facts("gif", width, height)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    return None


def _webp(data: bytes) -> Facts | None:
    match data[12:16]:
        case b"VP8X":
            width = int.from_bytes(data[24:27], "little") + 1
            height = int.from_bytes(data[27:30], "little") + 1
            if len(data) < 30:  # noqa: PLR2004 - where the size ends
                raise IndexError
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            wide, high = struct.unpack_from("<HH", data, 26)
            width, height = wide & 0x3FFF, high & 0x3FFF
        case _:
            return None
    return Facts("webp", width, height)


def _jpeg(data: bytes) -> Facts:
    """Walk a JPEG's segments up to the one that tells its size."""
    at = 2
    while True:
        while data[at] != 0xFF:  # noqa: PLR2004 - every segment begins with it
            at += 1
        while data[at] == 0xFF:  # noqa: PLR2004 - fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in _BARE:
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return Facts("jpeg", width, height)
        (length,) = struct.unpack_from(">H", data, at)
        at += length


def _broken(param: str, why: str) -> ParameterError:
    return ParameterError(
        f"the image cannot be read: {why}",
        param=param,
        reason="invalid_image",
        mend="send a whole PNG, JPEG, GIF or WebP file",
    )


def _too_large(param: str, why: str) -> ParameterError:
    return ParameterError(
        f"the image {why}", param=param, reason="image_too_large", mend="send a smaller one"
    )

"""What the commands about users, keys and limits share: the directory, times and amounts as people write them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from tokenweir.access.directory import Directory
from tokenweir.cli.start import start
from tokenweir.core.errors import InputError, NotFoundError
from tokenweir.core.ids import format_id, parse_id
from tokenweir.core.units import parse_duration

_DAY: Final = "d"


@contextmanager
def directory() -> Generator[Directory]:
    """Give the directory that the settings name."""
    opened = Directory(start().stores.access)
    try:
        yield opened
    finally:
        opened.close()


def key_text(key: bytes) -> str:
    """Return a key's id as it is shown: ``key_…``."""
    return format_id("key", int.from_bytes(key, "big"))


def key_id(text: str) -> bytes:
    """Read a key's id. Raises NotFoundError, since a malformed id names no key."""
    try:
        return parse_id(text, prefix="key").uuid.to_bytes(16, "big")
    except InputError as error:
        raise NotFoundError(f"there is no key {text!r}", mend="weir keys list shows their ids") from error


def moment(at: int | None) -> str:
    """Return an instant as UTC, to the second; a dash for none."""
    if at is None:
        return "–"
    return datetime.fromtimestamp(at / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def lifetime(text: str) -> int:
    """Read how long something lasts: days (``90d``), or a duration. Raises InputError."""
    if text.endswith(_DAY) and text[:-1].isdigit():
        return int(text[:-1]) * 86_400_000_000_000
    return parse_duration(text, what="lifetime")

"""What the commands about users, keys and limits share: the directory, and times as people read them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime

from tokenweir.access.directory import Directory
from tokenweir.cli.start import start


@contextmanager
def directory() -> Generator[Directory]:
    """Give the directory that the settings name."""
    opened = Directory(start().stores.access)
    try:
        yield opened
    finally:
        opened.close()


def moment(at: int | None) -> str:
    """Return an instant as UTC, to the second; a dash for none."""
    if at is None:
        return "–"
    return datetime.fromtimestamp(at / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")

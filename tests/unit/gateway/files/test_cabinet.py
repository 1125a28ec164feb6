from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import ParameterError
from tokenweir.gateway.files.cabinet import Cabinet, FileFacts, FileLimits
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.files import FileRecord
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.files import SqliteFiles

USER = b"u" * 16
SECOND_NS = 1_000_000_000


class Room:
    """A cabinet over the embedded store."""

    def __init__(self, path: Path) -> None:
        self.clock = VirtualClock()
        self.database = Database(f"sqlite:///{path / 'gateway.db'}")
        self.store = SqliteFiles(self.database)
        self.cabinet = Cabinet(self.store, Sealer(), self.clock, FileLimits(file_bytes=100, user_bytes=100))
        self._count = 0

    @property
    def next_id(self) -> bytes:
        """The next id."""
        self._count += 1
        return self._count.to_bytes(16, "big")

    async def kept(self, data: bytes, *, keeps_ns: int | None = None) -> FileRecord:
        """Write a file."""
        writing = await self.cabinet.write(USER, self.next_id)
        await writing.write(data)
        record, _ = await writing.keep(FileFacts(name="f", purpose="user_data", keeps_ns=keeps_ns))
        return record

    async def page(self, *, after: bytes | None = None, limit: int) -> list[bytes]:
        """Return the ids of a page."""
        found = await self.cabinet.listed(USER, purpose="", after=after, newest=True, limit=limit)
        return [record.file for record in found]


@asynccontextmanager
async def room(path: Path) -> AsyncGenerator[Room]:
    made = Room(path)
    try:
        yield made
    finally:
        made.database.close()


def test_files_that_are_sent_at_once_have_no_more_room_than_one_after_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with room(tmp_path) as made:
            first, second = [await made.cabinet.write(USER, made.next_id) for _ in range(2)]
            await first.write(b"x" * 60)
            await second.write(b"x" * 60)
            facts = FileFacts(name="f", purpose="user_data")
            kept, _ = await first.keep(facts)
            with pytest.raises(ParameterError, match="more than 100 bytes together"):
                await second.keep(facts)
            assert await made.store.stored(USER) == 60
            assert await made.page(limit=9) == [kept.file]

    asyncio.run(story())


def test_a_page_is_full_though_some_have_expired_and_are_not_swept_yet(tmp_path: Path) -> None:
    async def story() -> None:
        async with room(tmp_path) as made:
            old = await made.kept(b"a")
            for _ in range(3):
                await made.kept(b"b", keeps_ns=SECOND_NS)
            young = await made.kept(b"c")
            assert len(await made.page(limit=9)) == 5
            made.clock.advance(2 * SECOND_NS)
            assert await made.page(limit=2) == [young.file, old.file]
            assert await made.page(limit=1, after=young.file) == [old.file]
            assert await made.page(limit=1, after=old.file) == []

    asyncio.run(story())

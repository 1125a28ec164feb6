"""Files that callers send and get: written bit by bit, seen once they are whole, read bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec

Purpose = Literal["batch", "batch_output", "user_data"]


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a file beside its contents. Ids are 16 bytes, times Unix ns, ``size`` counts plain bytes.

    ``digest`` is SHA-256 of what was sent; ``idempotency`` is the caller's key, unique for its user; "" is none.
    """

    file: bytes
    user: bytes
    name: str
    purpose: Purpose
    size: int
    at: int
    digest: bytes
    expires_at: int | None = None
    idempotency: str = ""


class Kept(msgspec.Struct, frozen=True, kw_only=True, tag="kept"):
    """The file is durable, and is seen from here."""

    record: FileRecord


class Earlier(msgspec.Struct, frozen=True, kw_only=True, tag="earlier"):
    """The idempotency key has a file, ``record``; what was written now is gone. ``same``: it was sent alike."""

    record: FileRecord
    same: bool


Filed: TypeAlias = Kept | Earlier


class FileWriting(Protocol):
    """Writes files. Until it is kept a file is not there; one that never is goes with the next sweep."""

    async def begin(self, file: bytes, user: bytes, at: int) -> None:
        """Begin a file anew: nothing of it is there any more, if there was."""
        ...

    async def append(self, file: bytes, place: int, data: bytes) -> None:
        """Write the next piece, ``place`` counted from 0."""
        ...

    async def keep(self, record: FileRecord) -> Filed:
        """Make a file durable and seen."""
        ...


class FileReading(Protocol):
    """Reads files that are kept."""

    async def get(self, file: bytes) -> FileRecord | None:
        """Return a file, or ``None``."""
        ...

    async def piece(self, file: bytes, place: int) -> bytes | None:
        """Return a piece as it was written; ``None`` behind the last."""
        ...

    async def listed(
        self, user: bytes, *, purpose: str = "", after: bytes | None = None, newest: bool = True, limit: int
    ) -> Sequence[FileRecord]:
        """Return a user's files in the order of their ids, those that follow ``after``."""
        ...

    async def stored(self, user: bytes) -> int:
        """Return how many bytes a user's files have."""
        ...


class FileUpkeep(Protocol):
    """Lets go of files."""

    async def remove(self, file: bytes) -> bool:
        """Remove a file, kept or not; ``False``: there is none."""
        ...

    async def sweep(self, *, now: int, begun_before: int) -> int:
        """Remove files that have expired, and those begun before an instant and never kept; returns how many."""
        ...


class FileResealing(Protocol):
    """Changing the key that pieces are sealed with."""

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[tuple[bytes, int, bytes]]:
        """Return up to ``limit`` pieces, as (file, place, data), that do not begin with ``prefix``."""
        ...

    async def replace(self, batch: Sequence[tuple[bytes, int, bytes]]) -> None:
        """Store pieces in the place of what is there."""
        ...


class FileStore(FileWriting, FileReading, FileUpkeep, FileResealing, Protocol):
    """All of it."""

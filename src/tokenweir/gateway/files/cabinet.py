"""The files of a gateway: written in sealed pieces, bounded, and seen by their owner alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from tokenweir.asgi.problems import BodyTooLargeError
from tokenweir.core.clock import Clock
from tokenweir.core.errors import ConflictError, InputError, NotFoundError, ParameterError
from tokenweir.core.ids import format_id, parse_id
from tokenweir.core.requests import Json
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.files import Earlier, FileRecord, FileStore, Kept, Purpose

PIECE_BYTES: Final = 256 << 10
_S: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _S
_UNFINISHED_NS: Final = _DAY_NS
_ANY: Final = 2**62
BATCH_EXPIRES_NS: Final = 30 * _DAY_NS
"""How long files of batches are kept where nothing else is said."""


class FileLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long one file may be, and all of a user's together."""

    file_bytes: int = 200 << 20
    user_bytes: int = 10 << 30


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a file when it is whole. ``keeps_ns`` is for how long; ``None`` is until it is deleted."""

    name: str
    purpose: Purpose
    keeps_ns: int | None = None
    idempotency: str = ""


class Cabinet:
    """Writes, finds, reads and removes files."""

    def __init__(
        self, store: FileStore, sealer: Sealer, clock: Clock, limits: FileLimits | None = None
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._clock = clock
        self.limits = limits or FileLimits()

    async def write(self, user: bytes, file: bytes, *, bounded: bool = True) -> Writing:
        """Begin a file of a user's. One that is ``bounded`` counts against the limits.

        Raises ParameterError where the user's files are as many bytes as may be.
        """
        limits = self.limits
        bounds = _Bounds(file_bytes=_ANY, room_bytes=_ANY, user_bytes=_ANY)
        if bounded:
            room = limits.user_bytes - await self._store.stored(user)
            bounds = _Bounds(file_bytes=limits.file_bytes, room_bytes=room, user_bytes=limits.user_bytes)
            if room <= 0:
                raise _full(limits.user_bytes)
        at = self._clock.wall_ns()
        await self._store.begin(file, user, at)
        return Writing(self._store, self._sealer, bounds, user=user, file=file, at=at)

    async def own(self, user: bytes, text: str, *, param: str = "") -> FileRecord:
        """Return a user's file ``file_…``.

        Raises NotFoundError, for those of others too; ParameterError in its place where a parameter names the file.
        """
        record = None
        with contextlib.suppress(InputError):
            record = await self._store.get(parse_id(text, prefix="file").uuid.to_bytes(16, "big"))
        expired = (
            record is not None
            and record.expires_at is not None
            and record.expires_at <= self._clock.wall_ns()
        )
        if record is None or record.user != user or expired:
            message, mend = f"there is no file {text[:80]!r}", "GET /v1/files lists yours"
            if param:
                raise ParameterError(message, param=param, reason="file_not_found", mend=mend)
            raise NotFoundError(message, mend=mend)
        return record

    async def listed(
        self, user: bytes, *, purpose: str, after: bytes | None, newest: bool, limit: int
    ) -> Sequence[FileRecord]:
        """Return a user's files in the order of their ids."""
        now, seen = self._clock.wall_ns(), list[FileRecord]()
        while (left := limit - len(seen)) > 0:
            found = await self._store.listed(user, purpose=purpose, after=after, newest=newest, limit=left)
            seen += [record for record in found if record.expires_at is None or record.expires_at > now]
            if len(found) < left:
                break
            # In the place of those that have expired and are not swept yet, there may be others.
            after = found[-1].file
        return seen

    async def read(self, file: bytes) -> AsyncGenerator[bytes]:
        """Yield the contents of a file, piece by piece. Raises SealError."""
        place = 0
        while (piece := await self._store.piece(file, place)) is not None:
            yield self._sealer.open(file, piece)
            place += 1

    async def remove(self, file: bytes) -> None:
        """Remove a file."""
        await self._store.remove(file)

    async def sweep(self) -> int:
        """Remove files that have expired or were never finished."""
        now = self._clock.wall_ns()
        return await self._store.sweep(now=now, begun_before=now - _UNFINISHED_NS)


class _Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How long a file may become, how many bytes its user may add, and may have."""

    file_bytes: int
    room_bytes: int
    user_bytes: int


class Writing:
    """A file that is being written. :meth:`discard` it where it does not come to :meth:`keep`."""

    def __init__(
        self, store: FileStore, sealer: Sealer, bounds: _Bounds, *, user: bytes, file: bytes, at: int
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._bounds = bounds
        self._user = user
        self._file = file
        self._at = at
        self._waiting = bytearray()
        self._place = 0
        self._digest = hashlib.sha256()
        self.size = 0

    async def write(self, data: bytes) -> None:
        """Take more of its contents.

        Raises:
            BodyTooLargeError: the file is longer than one may be.
            ParameterError: the user's files have more bytes than they may.
        """
        self.size += len(data)
        if self.size > self._bounds.file_bytes:
            raise BodyTooLargeError(
                f"the file is longer than {self._bounds.file_bytes} bytes",
                mend="send it in parts, or raise the server's max_file_bytes",
            )
        if self.size > self._bounds.room_bytes:
            raise _full(self._bounds.user_bytes)
        self._digest.update(data)
        self._waiting += data
        while len(self._waiting) >= PIECE_BYTES:
            await self._append(bytes(self._waiting[:PIECE_BYTES]))
            del self._waiting[:PIECE_BYTES]

    async def _append(self, piece: bytes) -> None:
        await self._store.append(self._file, self._place, self._sealer.seal(self._file, piece))
        self._place += 1

    async def keep(self, facts: FileFacts) -> tuple[FileRecord, bool]:
        """Make the file seen; returns it, or the one that its idempotency key has already, and whether it is that one.

        Raises ConflictError where that one was sent otherwise.
        """
        if self._waiting:
            await self._append(bytes(self._waiting))
            self._waiting.clear()
        said = msgspec.json.encode([facts.name, facts.purpose, facts.keeps_ns])
        self._digest.update(b"\0" + said)
        record = FileRecord(
            file=self._file,
            user=self._user,
            name=facts.name,
            purpose=facts.purpose,
            size=self.size,
            at=self._at,
            digest=self._digest.digest(),
            expires_at=None if facts.keeps_ns is None else self._at + facts.keeps_ns,
            idempotency=facts.idempotency,
        )
        filed = await self._store.keep(record)
        if isinstance(filed, Earlier) and not filed.same:
            raise ConflictError(
                f"the idempotency key {facts.idempotency!r} was used with another file",
                mend="send the same file again, or use a new key",
            )
        if isinstance(filed, Kept) and await self._store.stored(self._user) > self._bounds.user_bytes:
            # Others were written at the same time, each of which had room for itself.
            await self._store.remove(self._file)
            raise _full(self._bounds.user_bytes)
        return filed.record, isinstance(filed, Earlier)

    async def discard(self) -> None:
        """Remove what was written."""
        await self._store.remove(self._file)


def file_id(file: bytes) -> str:
    """Return ``file_…``."""
    return format_id("file", int.from_bytes(file, "big"))


def shown(record: FileRecord) -> dict[str, Json]:
    """Return a file as OpenAI shows it."""
    return {
        "id": file_id(record.file),
        "object": "file",
        "bytes": record.size,
        "created_at": record.at // _S,
        "expires_at": None if record.expires_at is None else record.expires_at // _S,
        "filename": record.name,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def _full(most: int) -> ParameterError:
    return ParameterError(
        f"your files have more than {most} bytes together",
        param="file",
        reason="storage_full",
        mend="delete some, or have the server's max_stored_bytes raised",
    )

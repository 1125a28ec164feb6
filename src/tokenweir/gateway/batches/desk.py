"""Batches for their owners: made, found, listed, asked to stop."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import ConflictError, InputError, NotFoundError, ParameterError, QuotaExceededError
from tokenweir.core.ids import parse_id
from tokenweir.core.requests import Json
from tokenweir.gateway.batches.lines import ENDPOINTS
from tokenweir.gateway.batches.state import BatchState, open_state, seal, shown
from tokenweir.gateway.direct.body import fields_of
from tokenweir.gateway.files.cabinet import BATCH_EXPIRES_NS, Cabinet
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.gateway.responses.asked import check_metadata, convert
from tokenweir.ports.access import Caller
from tokenweir.ports.batches import BatchRecord, BatchStore

_S: Final = 1_000_000_000
_WINDOW: Final = "24h"
_WINDOW_NS: Final = 86_400 * _S
_OPEN_MOST: Final = 64
_EXPIRES_LEAST_S: Final = 3600
_EXPIRES_MOST_S: Final = 2_592_000
_AGAIN_NS: Final = 60 * _S


class _Expires(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    anchor: str
    seconds: int


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: _Expires | None = None


class Desk:
    """Takes batches in. ``nudge`` is called when there is a change that whoever works on them should see."""

    def __init__(
        self, store: BatchStore, cabinet: Cabinet, sealer: Sealer, clock: Clock, nudge: Callable[[], None]
    ) -> None:
        self._store = store
        self._cabinet = cabinet
        self._sealer = sealer
        self._clock = clock
        self._nudge = nudge

    async def create(
        self, caller: Caller, raw: bytes, batch: bytes, *, idempotency: str
    ) -> tuple[dict[str, Json], bool]:
        """Take a batch in; returns it, and whether its idempotency key had it already.

        Raises:
            ParameterError: the body cannot be used.
            ConflictError: the idempotency key belongs to another body.
            QuotaExceededError: the caller has as many batches open as may be.
        """
        fields, asked = _read(raw)
        digest = hashlib.sha256(msgspec.json.encode(fields, order="sorted")).digest()
        newest = await self._store.listed(caller.user, after=None, limit=_OPEN_MOST)
        earlier = next((each for each in newest if idempotency and each.idempotency == idempotency), None)
        if earlier is not None:
            # Neither the file nor the room for another batch matters to one that is there.
            return self.shown(_same(earlier, digest)), True
        file = await self._cabinet.own(caller.user, asked.input_file_id, param="input_file_id")
        if file.purpose != "batch":
            raise ParameterError(
                f"the file {asked.input_file_id!r} is of purpose {file.purpose!r}",
                param="input_file_id",
                mend="send it with the purpose batch",
            )
        if sum(record.ended_at is None for record in newest) >= _OPEN_MOST:
            raise QuotaExceededError(
                f"{_OPEN_MOST} of your batches have not ended",
                mend="wait for one, or cancel one",
                retry_after_ns=_AGAIN_NS,
            )
        at = self._clock.wall_ns()
        expires = asked.output_expires_after
        state = BatchState(
            endpoint=asked.endpoint,
            input_file=asked.input_file_id,
            expires_at=at + _WINDOW_NS,
            keeps_ns=BATCH_EXPIRES_NS if expires is None else expires.seconds * _S,
            metadata=asked.metadata or {},
        )
        kept = await self._store.create(
            BatchRecord(
                batch=batch,
                user=caller.user,
                key=caller.key,
                at=at,
                digest=digest,
                state=seal(self._sealer, batch, state),
                idempotency=idempotency,
            )
        )
        self._nudge()
        return self.shown(_same(kept, digest)), kept.batch != batch

    async def own(self, caller: Caller, text: str) -> BatchRecord:
        """Return a caller's batch ``batch_…``. Raises NotFoundError, for those of others too."""
        record = None
        with contextlib.suppress(InputError):
            record = await self._store.get(parse_id(text, prefix="batch").uuid.to_bytes(16, "big"))
        if record is None or record.user != caller.user:
            raise NotFoundError(f"there is no batch {text[:80]!r}", mend="GET /v1/batches lists yours")
        return record

    async def listed(self, caller: Caller, *, after: bytes | None, limit: int) -> Sequence[BatchRecord]:
        """Return a caller's batches, newest first."""
        return await self._store.listed(caller.user, after=after, limit=limit)

    async def cancel(self, record: BatchRecord) -> BatchRecord:
        """Have a batch stopped. Raises ConflictError for one that has ended."""
        if record.ended_at is not None:
            status = open_state(self._sealer, record).status
            if status == "cancelled":
                return record
            raise ConflictError(f"the batch is {status}", mend="only one that has not ended is cancelled")
        await self._store.cancel(record.batch, self._clock.wall_ns())
        self._nudge()
        return await self._store.get(record.batch) or record

    def shown(self, record: BatchRecord) -> dict[str, Json]:
        """Return a batch as OpenAI shows it. Raises SealError."""
        return shown(record, open_state(self._sealer, record))


def _same(kept: BatchRecord, digest: bytes) -> BatchRecord:
    """Return the batch that an idempotency key has. Raises ConflictError where it was made of another body."""
    if kept.digest != digest:
        raise ConflictError(
            f"the idempotency key {kept.idempotency!r} was used with another body",
            mend="send the same body again, or use a new key",
        )
    return kept


def _read(raw: bytes) -> tuple[dict[str, Json], _Asked]:
    """Return the fields of a body, and what they say. Raises ParameterError."""
    fields = fields_of(raw)
    known = _Asked.__struct_fields__
    foreign = [name for name in fields if name not in known]
    if foreign:
        raise ParameterError(
            f"unknown parameter {foreign[0][:80]!r}",
            param=foreign[0][:80],
            reason="unknown_parameter",
            mend=f"it takes {', '.join(known)}",
        )
    asked = convert(fields, _Asked)
    if asked.endpoint not in ENDPOINTS:
        raise ParameterError(
            f"the endpoint {asked.endpoint[:80]!r} is not supported",
            param="endpoint",
            mend=f"it may be {', '.join(ENDPOINTS)}",
        )
    if asked.completion_window != _WINDOW:
        raise ParameterError(
            f"the completion_window {asked.completion_window[:20]!r} is not supported",
            param="completion_window",
            mend=f"write {_WINDOW}",
        )
    expires = asked.output_expires_after
    if expires is not None and not (
        expires.anchor == "created_at" and _EXPIRES_LEAST_S <= expires.seconds <= _EXPIRES_MOST_S
    ):
        raise ParameterError(
            "output_expires_after cannot be used",
            param="output_expires_after",
            mend=f"the anchor is created_at, and seconds are {_EXPIRES_LEAST_S} to {_EXPIRES_MOST_S}",
        )
    check_metadata(asked.metadata)
    return fields, asked

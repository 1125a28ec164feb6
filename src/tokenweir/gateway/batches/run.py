"""One batch: checked line by line, sent line by line, and written down line by line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec

from tokenweir.asgi.stopping import first_of
from tokenweir.core.clock import Clock
from tokenweir.core.errors import (
    DiskFullError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    ParameterError,
    QuotaExceededError,
    UnavailableError,
    WeirError,
)
from tokenweir.core.events import Completed, Event
from tokenweir.gateway.batches.lines import (
    Line,
    RawLine,
    TooLongError,
    file_of,
    raw_lines,
    request_of,
    understood,
    wish_of,
)
from tokenweir.gateway.batches.results import Outcome, add_use, outcome_of
from tokenweir.gateway.batches.state import BatchCounts, LineError, Status, Used, open_state, seal
from tokenweir.gateway.endpoints.pool import Pool
from tokenweir.gateway.files.cabinet import Cabinet, FileFacts, Writing, file_id
from tokenweir.gateway.queued.node import Queued
from tokenweir.gateway.queued.reading import all_events
from tokenweir.gateway.responses.shelf import Shelf
from tokenweir.ports.access import Caller, Owners
from tokenweir.ports.batches import Batches, BatchRecord
from tokenweir.ports.files import FileRecord
from tokenweir.ports.requests import RequestRecord

LINES_MOST: Final = 50_000
_ERRORS_MOST: Final = 100
_REFUSED_MOST: Final = 10_000
_BREATH: Final = 32
"""Lines that are read before others get their turn."""
_WAIT_S: Final = 1.0
_WAIT_MOST_S: Final = 30.0
_NS_PER_S: Final = 1_000_000_000


class LostError(WeirError):
    """Another process works on the batch."""

    code = "lost"


class GoneError(WeirError):
    """The batch's file is not there any more."""

    code = "file_not_found"


class Workplace(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch is worked on with. ``lines`` may be in flight at once."""

    store: Batches
    worker: bytes
    cabinet: Cabinet
    queued: Queued
    pool: Pool
    shelf: Shelf
    owners: Owners
    clock: Clock
    lines: int
    line_bytes: int
    counts: BatchCounts


class BatchRun:
    """Works on one batch, from wherever its state says that it is.

    Each line's request has an id of its own that never changes, so that going through the lines again takes none on
    a second time.
    """

    def __init__(self, place: Workplace, record: BatchRecord) -> None:
        self._place = place
        self._record = record
        self._state = open_state(place.queued.sealer, record)
        self._caller: Caller | None = None
        self._stop = asyncio.Event()
        self._in_flight: dict[bytes, RequestRecord] = {}
        self._saved = b""
        self.ended = False
        """Whether its end is stored."""

    @property
    def status(self) -> Status:
        """What it is in the middle of."""
        return self._state.status

    async def look(self, record: BatchRecord) -> None:
        """See what has changed about it, a moment ago or by its owner's wish, and store how far it is."""
        self._record = msgspec.structs.replace(self._record, cancel_at=record.cancel_at)
        if self.ended or self._state.status not in {"in_progress", "cancelling"}:
            return
        with contextlib.suppress(UnavailableError):
            self._caller = await self._place.owners.owner(record.key)
            if self._caller is None and not self._stop.is_set():
                await self._give_up("key_revoked", "the key that made the batch counts no more")
        if record.cancel_at is not None and not self._stop.is_set():
            await self._cancel()
        await self._save()

    async def run(self, *, last: bool = False) -> None:
        """Work until it has ended; with ``last`` only say that it has failed.

        Raises:
            LostError: another process holds it.
            UnavailableError: a store is away; it can be gone on with later.
        """
        state = self._state
        if last:
            state.errors = [LineError(code="internal_error", message="the batch could not be worked on")]
            await self._end("failed")
            return
        self._caller = await self._place.owners.owner(self._record.key)
        try:
            if state.status == "validating":
                await self._validate()
            if state.status in {"in_progress", "cancelling"}:
                await self._walk()
            if not self.ended:
                await self._write_down()
        except GoneError as error:
            state.errors = [LineError(code=error.code, message=error.message, param="input_file_id")]
            await self._end("failed")

    # -- lines ------------------------------------------------------------------------------------------------------

    async def _lines(self) -> AsyncGenerator[RawLine]:
        """Yield the lines of the file. Raises GoneError where it was deleted meanwhile."""
        place = self._place
        file = await self._file()
        async with (
            aclosing(place.cabinet.read(file.file)) as pieces,
            aclosing(raw_lines(pieces, most_bytes=place.line_bytes)) as lines,
        ):
            async for raw in lines:
                if raw.number % _BREATH == 0:
                    await asyncio.sleep(0)
                yield raw
        await self._file()

    async def _file(self) -> FileRecord:
        try:
            return await self._place.cabinet.own(self._record.user, self._state.input_file)
        except NotFoundError:
            raise GoneError(f"the file {self._state.input_file!r} was deleted") from None

    async def _validate(self) -> None:
        """Check every line before one is sent: what is wrong is told with its number, and nothing is reserved."""
        state, errors, names = self._state, list[LineError](), set[str]()
        models = set[str]()
        total = 0
        try:
            async for raw in self._lines():
                total += 1
                if total > LINES_MOST:
                    break
                found = await self._wrong(raw, names, models)
                if found is not None:
                    errors.append(found)
                    if len(errors) >= _ERRORS_MOST:
                        break
        except TooLongError as error:
            errors.append(_line_error(error, None))
        if total > LINES_MOST:
            errors.append(
                LineError(code="too_many_tasks", message=f"the file has more than {LINES_MOST} lines")
            )
        if not total and not errors:
            errors.append(LineError(code="empty_file", message="the file has no lines"))
        state.total = 0 if errors else total
        state.model = models.pop() if len(models) == 1 else None
        if errors:
            state.errors = errors
            await self._end("failed")
            return
        state.become("in_progress", self._now())
        await self._save()

    async def _wrong(self, raw: RawLine, names: set[str], models: set[str]) -> LineError | None:
        caller = self._caller
        if caller is None:
            return LineError(code="key_revoked", message="the key that made the batch counts no more")
        try:
            line = understood(raw, self._state.endpoint)
            _check_name(line.custom_id, names)
            wish = await wish_of(self._place.shelf, caller, raw, line, request=self._request(raw))
            model = wish.kept.read().model
            if self._place.queued.accepting.shaping is None:
                # Processors may name another one; then it is looked for when the line is sent.
                self._check_model(caller, model)
        except (ParameterError, ForbiddenError, NotFoundError) as error:
            return _line_error(error, raw.number)
        names.add(line.custom_id)
        models.add(model)
        return None

    def _check_model(self, caller: Caller, model: str) -> None:
        self._place.pool.need(model)
        if not caller.may_ask(model):
            raise ForbiddenError(
                f"this key may not ask the model {model!r}", mend=f"it may ask {', '.join(caller.models)}"
            )

    # -- sending ----------------------------------------------------------------------------------------------------

    async def _walk(self) -> None:
        """Send the lines that have not been, in order, and see all to their ends."""
        state = self._state
        state.completed = state.failed = 0
        state.used = Used()
        room = asyncio.Semaphore(self._place.lines)
        if self._record.cancel_at is not None:
            await self._cancel()
        try:
            async with asyncio.TaskGroup() as group, aclosing(self._lines()) as lines:
                async for raw in lines:
                    await room.acquire()
                    record = await self._sent(raw)
                    if record is None:
                        room.release()
                        continue
                    self._in_flight[record.request] = record
                    if self._stop.is_set() and record.ended_at is None:
                        await self._place.queued.cancelling.cancel(record)
                    group.create_task(self._follow(record, room))
        except* Exception as errors:  # noqa: BLE001 - only taken out of their group
            raise first_of(errors) from None

    async def _sent(self, raw: RawLine) -> RequestRecord | None:
        """Return the request of a line, which is taken on unless it was; ``None``: it is not."""
        requests = self._place.queued.stores.requests
        request = self._request(raw)
        record = await requests.get(request)
        if record is not None or raw.number in self._state.refused:
            self._state.failed += record is None
            return record
        wait_s = _WAIT_S
        while not self._over():
            try:
                await self._accept(raw, request)
            except QuotaExceededError as error:
                # Limits hold for batches too; what ends meanwhile makes room, and so does the next window.
                wait_s = min(_WAIT_MOST_S, 2 * wait_s, max(_WAIT_S, (error.retry_after_ns or 0) / _NS_PER_S))
                await self._pause(wait_s)
            except (OverloadedError, UnavailableError, DiskFullError):
                await self._pause(_WAIT_S)
            except WeirError as error:
                self._refuse(raw, error)
                return None
            else:
                return await requests.get(request)
        return None

    async def _accept(self, raw: RawLine, request: bytes) -> None:
        place, caller = self._place, self._caller
        if caller is None:
            raise UnavailableError("the key counts no more")
        line = understood(raw, self._state.endpoint)
        wish = await wish_of(place.shelf, caller, raw, line, request=request)
        left_ns = max(1, self._state.expires_at - self._now())
        await place.queued.accepting.accept(
            caller, request, msgspec.structs.replace(wish, deadline_ns=left_ns)
        )

    def _refuse(self, raw: RawLine, error: WeirError) -> None:
        refused = self._state.refused
        self._state.failed += 1
        self._place.counts.lines["failed"] += 1
        if len(refused) < _REFUSED_MOST:
            refused[raw.number] = _line_error(error, raw.number)

    async def _follow(self, record: RequestRecord, room: asyncio.Semaphore) -> None:
        """See a request to its end."""
        try:
            events: list[Event] = []
            async with aclosing(all_events(self._place.queued.reading, record)) as batches:
                async for batch in batches:
                    events.extend(batch)
            completed = bool(events) and isinstance(events[-1], Completed)
            self._state.completed += completed
            self._state.failed += not completed
            if record.ended_at is None:
                # Otherwise it had ended before, and whoever saw that has counted it.
                self._place.counts.lines["completed" if completed else "failed"] += 1
            add_use(self._state.used, events)
        finally:
            self._in_flight.pop(record.request, None)
            room.release()

    async def _cancel(self) -> None:
        """Send no more, and stop what is in flight."""
        if not self._stop.is_set():
            self._stop.set()
            self._state.become("cancelling", self._now())
        for record in list(self._in_flight.values()):
            await self._place.queued.cancelling.cancel(record)

    async def _give_up(self, code: str, message: str) -> None:
        self._state.errors = [LineError(code=code, message=message)]
        await self._cancel()

    def _over(self) -> bool:
        return self._stop.is_set() or self._now() >= self._state.expires_at

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    # -- writing down -----------------------------------------------------------------------------------------------

    async def _write_down(self) -> None:
        """Write output and errors in the order of the lines, then say that it is done."""
        state = self._state
        stopped = state.status == "cancelling" or "cancelling_at" in state.times
        state.become("finalizing", self._now())
        await self._save()
        output, errors = self._paper("output"), self._paper("error")
        expired = False
        try:
            async for raw in self._lines():
                outcome = await self._written(raw)
                if outcome is None and stopped:
                    continue
                if outcome is None:
                    expired = True
                    outcome = self._unsent(raw)
                paper = output if outcome.good else errors
                await paper.write(outcome.line(_custom_id(raw, state.endpoint)))
            state.output_file, state.error_file = await output.keep(), await errors.keep()
        except BaseException:
            await output.discard()
            await errors.discard()
            raise
        counted = state.completed + state.failed
        if not stopped and counted < state.total:
            # Lines that nobody came to send have failed.
            self._place.counts.lines["failed"] += state.total - counted
            state.failed = state.total - state.completed
        await self._end("cancelled" if stopped else "expired" if expired else "completed")

    def _paper(self, kind: str) -> _Paper:
        record = self._record
        return _Paper(
            self._place.cabinet,
            record.user,
            file_of(record.batch, record.at, kind),
            FileFacts(
                name=f"{self._state.input_file}_{kind}.jsonl",
                purpose="batch_output",
                keeps_ns=self._state.keeps_ns,
            ),
        )

    async def _written(self, raw: RawLine) -> Outcome | None:
        """Return what became of a line; ``None``: it was never sent."""
        request = self._request(raw)
        refused = self._state.refused.get(raw.number)
        if refused is not None:
            return Outcome(request=request, code=refused.code, message=refused.message)
        record = await self._place.queued.stores.requests.get(request)
        if record is None:
            return None
        return await self._outcome(record, await self._place.queued.reading.events(record))

    async def _outcome(self, record: RequestRecord, events: list[Event]) -> Outcome:
        place = self._place
        return await outcome_of(
            place.queued.reading, place.shelf, record, events, endpoint=self._state.endpoint
        )

    def _unsent(self, raw: RawLine) -> Outcome:
        return Outcome(
            request=self._request(raw),
            code="batch_expired",
            message="the request was not sent within the completion window",
        )

    # -- state ------------------------------------------------------------------------------------------------------

    async def _end(self, status: Status) -> None:
        now = self._now()
        self._state.become(status, now)
        self._record = msgspec.structs.replace(self._record, ended_at=now)
        await self._save()
        self.ended = True
        self._place.counts.ended[status] += 1

    async def _save(self) -> None:
        """Store the state where it has changed. Raises LostError."""
        now = msgspec.json.encode(self._state)
        if now == self._saved:
            return
        record = msgspec.structs.replace(
            self._record, state=seal(self._place.queued.sealer, self._record.batch, self._state)
        )
        if not await self._place.store.save(record, self._place.worker):
            raise LostError(f"the batch {self._record.batch.hex()} is held by another process")
        self._saved = now

    def _request(self, raw: RawLine) -> bytes:
        return request_of(self._record.batch, self._record.at, raw.number)

    def _now(self) -> int:
        return self._place.clock.wall_ns()


class _Paper:
    """A file that is begun with its first line: where there is none, there is no file."""

    def __init__(self, cabinet: Cabinet, user: bytes, file: bytes, facts: FileFacts) -> None:
        self._cabinet = cabinet
        self._user = user
        self._file = file
        self._facts = facts
        self._writing: Writing | None = None

    async def write(self, line: bytes) -> None:
        """Write a line."""
        if self._writing is None:
            self._writing = await self._cabinet.write(self._user, self._file, bounded=False)
        await self._writing.write(line)

    async def keep(self) -> str | None:
        """Make it a file; returns its id, or ``None`` where nothing was written."""
        if self._writing is None:
            return None
        record, _ = await self._writing.keep(self._facts)
        return file_id(record.file)

    async def discard(self) -> None:
        """Throw it away."""
        if self._writing is not None:
            await self._writing.discard()


def _check_name(name: str, names: set[str]) -> None:
    if name in names:
        raise ParameterError(
            f"the custom_id {name[:80]!r} is there twice", param="custom_id", reason="duplicate_custom_id"
        )


def _custom_id(raw: RawLine, endpoint: str) -> str:
    line: Line = understood(raw, endpoint)
    return line.custom_id


def _line_error(error: WeirError, number: int | None) -> LineError:
    param = error.param if isinstance(error, ParameterError) else None
    code = error.reason if isinstance(error, ParameterError) else error.code
    return LineError(code=code, message=str(error), line=number, param=param)

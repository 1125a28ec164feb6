"""The admin routes of limits and use: what ``weir quotas`` and ``weir usage`` do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenweir.access.directory import Directory, LimitScope, StoredLimit
from tokenweir.access.wording import COST_UNIT, Subjects, key_id, need_known, plain, subject, whole
from tokenweir.asgi.call import Call
from tokenweir.core.errors import NotFoundError, ParameterError
from tokenweir.core.quota import Limit
from tokenweir.gateway.doors import admin_schemas as said
from tokenweir.gateway.doors.admin import administration, body_of, query_of
from tokenweir.gateway.doors.door import Door
from tokenweir.gateway.metering.billing import (
    ROW_COLUMNS,
    TOTAL_COLUMNS,
    Names,
    csv_lines,
    read_day,
    row_cells,
    total_cells,
)
from tokenweir.ports.ledger import LedgerFilter, LedgerTotal
from tokenweir.ports.quota import Headroom

_CSV: Final = b"text/csv; charset=utf-8"
_S: Final = 1_000_000_000
_PIECE_ROWS: Final = 256


async def quotas(door: Door, call: Call) -> None:
    """List the limits of a key, user, team or tier, or of all, and what counts against them."""
    await door.caller(call, "admin")
    named = _names(query_of(call, said.WhoseOrAll))

    def find(directory: Directory) -> list[tuple[str, StoredLimit]]:
        one = any(name is not None for name in named.values())
        limits = directory.limits(*subject(directory, named)) if one else directory.limits()
        subjects = Subjects(directory)
        return [
            (subjects.name(limit.scope, limit.subject), limit) for limit in sorted(limits, key=subjects.order)
        ]

    found = await administration(door).read(find)
    await call.answer_json(said.LimitList(data=await _shown(door, found)))


async def set_quota(door: Door, call: Call) -> None:
    """Set a limit, or change it."""
    caller = await door.caller(call, "admin")
    wanted = await body_of(door, call, said.LimitBody)
    if wanted.model:
        need_known((wanted.model,), door.direct.pool.models)
    amount = whole(wanted.amount, wanted.unit)

    def change(directory: Directory) -> StoredLimit:
        limit = _stored(directory, wanted, amount)
        directory.set_limit(limit)
        return limit

    limit = await administration(door).change(caller, f"limit of {_of(wanted)[1]} set", change)
    (shown,) = await _shown(door, [(_of(wanted)[1], limit)])
    await call.answer_json(shown)


async def remove_quota(door: Door, call: Call) -> None:
    """Remove a limit."""
    caller = await door.caller(call, "admin")
    wanted = query_of(call, said.LimitKind)

    def change(directory: Directory) -> bool:
        return directory.remove_limit(_stored(directory, wanted, 0))

    if not await administration(door).change(caller, f"limit of {_of(wanted)[1]} removed", change):
        raise NotFoundError("there is no such limit", mend="GET /v1/admin/quotas lists those there are")
    await call.answer_nothing()


async def verify(door: Door, call: Call) -> None:
    """Prove that every counter is what ledger and open reservations add up to."""
    await door.caller(call, "admin")
    differences = list(await administration(door).verify())
    await call.answer_json(said.Proof(agree=not differences, differences=differences))


async def rebuild(door: Door, call: Call) -> None:
    """Count everything anew."""
    caller = await door.caller(call, "admin")
    await call.answer_json(said.Counted(counters=await administration(door).rebuild(caller)))


async def usage(door: Door, call: Call) -> None:
    """Tell what was used: by day or month, as JSON or CSV, or the ledger itself as CSV."""
    await door.caller(call, "admin")
    asked = query_of(call, said.UsageQuery)
    admin = administration(door)
    where = await admin.read(lambda directory: _filter(directory, asked))
    names = await admin.names()
    if asked.by == "request":
        await _ledger(door, call, where, names)
        return
    totals = await admin.totals(where, asked.by)
    if b"text/csv" in (call.header(b"accept") or b""):
        lines = csv_lines([TOTAL_COLUMNS, *(total_cells(total, names) for total in totals)])
        await call.answer(200, lines.encode(), kind=_CSV)
        return
    await call.answer_json(said.UsageList(data=[_row(total, names) for total in totals]))


async def _ledger(door: Door, call: Call, where: LedgerFilter, names: Names) -> None:
    await call.begin(200, [(b"content-type", _CSV)])
    await call.write(csv_lines([ROW_COLUMNS]).encode())
    waiting: list[tuple[str | int, ...]] = []
    async for row in administration(door).rows(where):
        waiting.append(row_cells(row, names))
        if len(waiting) == _PIECE_ROWS:
            await call.write(csv_lines(waiting).encode())
            waiting.clear()
    await call.end_stream(csv_lines(waiting).encode())


def _filter(directory: Directory, asked: said.UsageQuery) -> LedgerFilter:
    team = None
    if asked.team is not None:
        _, team = subject(directory, {"team": asked.team})
    try:
        since, until = read_day(asked.since), read_day(asked.until)
    except OverflowError as error:
        raise ParameterError("the date is out of range", param="since", mend="give a later one") from error
    return LedgerFilter(
        user=None if asked.user is None else directory.user(asked.user).id,
        team=team,
        key=None if asked.key is None else key_id(asked.key),
        model=asked.model,
        since=since,
        until=until,
    )


def _row(total: LedgerTotal, names: Names) -> said.UsageRow:
    day, user, _, key, *_ = total_cells(total, names)
    return said.UsageRow(
        day=str(day),
        user=str(user),
        team=names.team(total.team),
        key=str(key),
        model=total.model,
        requests=total.requests,
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        cached_tokens=total.cached_tokens,
        cost=total.cost / COST_UNIT,
        estimated=total.estimated,
    )


def _names(whose: said.WhoseOrAll) -> dict[str, str | None]:
    return {"key": whose.key, "user": whose.user, "team": whose.team, "tier": whose.tier}


def _of(whose: said.Whose) -> tuple[str, str]:
    """Return whose it is: kind and name."""
    return next(((kind, name) for kind, name in _names(whose).items() if name is not None), ("", ""))


def _stored(directory: Directory, kind: said.LimitKind, amount: int) -> StoredLimit:
    scope, id_ = subject(directory, _names(kind))
    return StoredLimit(
        scope=scope, subject=id_, unit=kind.unit, window=kind.per, model=kind.model, amount=amount
    )


async def _shown(door: Door, limits: Sequence[tuple[str, StoredLimit]]) -> list[said.LimitAnswer]:
    """Return limits, each after the name of whose it is, as they are shown, with what counts against them now."""
    counted = [counting for _, limit in limits if (counting := _counting(limit)) is not None]
    left = {_kind(each.limit): each for each in await administration(door).use(counted)}
    return [_limit(limit, name, left.get(_kind(limit))) for name, limit in limits]


def _kind(limit: Limit | StoredLimit) -> tuple[str, bytes, str, str, str]:
    return limit.scope, limit.subject, limit.unit, limit.window, limit.model


def _counting(limit: StoredLimit) -> Limit | None:
    if limit.scope == "tier":
        return None
    return Limit(
        scope=limit.scope,
        subject=limit.subject,
        unit=limit.unit,
        window=limit.window,
        amount=limit.amount,
        model=limit.model,
    )


def _limit(limit: StoredLimit, name: str, left: Headroom | None) -> said.LimitAnswer:
    scope: LimitScope = limit.scope
    used = None if left is None else plain(limit.amount - left.remaining, limit.unit)
    return said.LimitAnswer(
        scope=scope,
        name=name,
        unit=limit.unit,
        per=limit.window,
        model=limit.model,
        amount=plain(limit.amount, limit.unit),
        used=used,
        resets_at=None if left is None else left.resets_at // _S,
    )

"""OpenAI's files: sent, listed, looked at, read, deleted."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final, cast, get_args

from tokenweir.asgi.call import Call
from tokenweir.core.errors import NotFoundError, ParameterError, WeirError
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.headers import REPLAYED
from tokenweir.gateway.doors.queries import newest_first, page, page_after, page_limit, query, whole_number
from tokenweir.gateway.files.cabinet import BATCH_EXPIRES_NS, Cabinet, FileFacts, file_id, shown
from tokenweir.gateway.files.forms import Form, FormReader, boundary_of
from tokenweir.gateway.queued.accepting import idempotency_key
from tokenweir.ports.files import FileRecord, Purpose

_NS_PER_S: Final = 1_000_000_000
_ENVELOPE_BYTES: Final = 64 << 10
"""What a form may have around its file."""
_PURPOSES: Final = ("batch", "user_data")
_FIELDS: Final = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_EXPIRES_LEAST_S: Final = 3600
_EXPIRES_MOST_S: Final = 2_592_000
_PAGE: Final = 10_000
_NAME_LETTERS: Final = 255


def cabinet(door: Door) -> Cabinet:
    """Return the files. Raises NotFoundError where this gateway has none."""
    if door.cabinet is None:
        raise NotFoundError("this gateway keeps no files", mend="use one that accepts queued requests")
    return door.cabinet


async def create(door: Door, call: Call) -> None:
    """Take a file in, as it comes."""
    caller = await door.caller(call, "infer")
    files = cabinet(door)
    key = idempotency_key(call.header(b"idempotency-key"))
    boundary = boundary_of(call.header(b"content-type"))
    writing = await files.write(caller.user, RequestId.new(door.clock).raw)
    whole = False
    try:
        most = files.limits.file_bytes + _ENVELOPE_BYTES
        async with aclosing(call.pieces(most, door.limits.read_timeout_ns)) as pieces:
            form = await FormReader(boundary, writing.write).read(pieces)
        record, repeated = await writing.keep(_facts(form, key))
        whole = True
    finally:
        if not whole:
            await writing.discard()
    headers = [REPLAYED] if repeated else []
    await call.answer_json(shown(record), headers=headers)


def _facts(form: Form, key: str) -> FileFacts:
    """Return what a form says of its file. Raises ParameterError."""
    foreign = [name for name in form.fields if name not in _FIELDS]
    if foreign:
        raise ParameterError(
            f"unknown parameter {foreign[0][:80]!r}",
            param=foreign[0][:80],
            reason="unknown_parameter",
            mend=f"it takes file, {', '.join(_FIELDS)}",
        )
    if form.file_name is None:
        raise ParameterError(
            "there is no file",
            param="file",
            reason="missing_required_parameter",
            mend="send it as the part file",
        )
    purpose = form.fields.get("purpose", "")
    if purpose not in _PURPOSES:
        raise ParameterError(
            f"the purpose {purpose[:80]!r} is not supported",
            param="purpose",
            reason="unsupported_parameter" if purpose else "missing_required_parameter",
            mend=f"it may be {' or '.join(_PURPOSES)}",
        )
    keeps_ns = _keeps_ns(form)
    if keeps_ns is None and purpose == "batch":
        keeps_ns = BATCH_EXPIRES_NS
    name = form.file_name[:_NAME_LETTERS].replace("\0", "")
    return FileFacts(name=name, purpose=cast("Purpose", purpose), keeps_ns=keeps_ns, idempotency=key)


def _keeps_ns(form: Form) -> int | None:
    seconds, anchor = form.fields.get("expires_after[seconds]"), form.fields.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return None
    if anchor != "created_at":
        raise ParameterError(
            f"the anchor {(anchor or '')[:80]!r} is not created_at",
            param="expires_after[anchor]",
            mend="write created_at",
        )
    text = seconds or ""
    keeps_s = whole_number(text, least=_EXPIRES_LEAST_S, most=_EXPIRES_MOST_S)
    if keeps_s is None:
        raise ParameterError(
            f"{text[:20]!r} is not {_EXPIRES_LEAST_S} to {_EXPIRES_MOST_S} seconds",
            param="expires_after[seconds]",
            mend="give a number of seconds",
        )
    return keeps_s * _NS_PER_S


async def listed(door: Door, call: Call) -> None:
    """List the caller's files."""
    caller = await door.caller(call, "infer")
    files = cabinet(door)
    asked = query(call, "purpose", "limit", "order", "after")
    purpose = asked.get("purpose", "")
    if purpose and purpose not in get_args(Purpose):
        raise ParameterError(f"the purpose {purpose[:80]!r} is unknown", param="purpose")
    limit = page_limit(asked.get("limit"), default=_PAGE, most=_PAGE)
    newest = newest_first(asked.get("order"))
    after = page_after(asked.get("after"), "file")
    found = await files.listed(caller.user, purpose=purpose, after=after, newest=newest, limit=limit + 1)
    await call.answer_json(page([shown(record) for record in found[:limit]], more=len(found) > limit))


async def show(door: Door, call: Call) -> None:
    """Describe a file."""
    caller = await door.caller(call, "infer")
    await call.answer_json(shown(await cabinet(door).own(caller.user, call.part)))


async def content(door: Door, call: Call) -> None:
    """Give a file's contents."""
    caller = await door.caller(call, "infer")
    files = cabinet(door)
    record = await files.own(caller.user, call.part)
    await call.begin(
        200,
        [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % record.size),
            (b"content-disposition", b'attachment; filename="%b"' % file_id(record.file).encode()),
            (b"x-content-type-options", b"nosniff"),
        ],
    )
    await _send(call, files, record)


async def _send(call: Call, files: Cabinet, record: FileRecord) -> None:
    sent = 0
    async with aclosing(files.read(record.file)) as pieces:
        async for piece in pieces:
            sent += len(piece)
            await call.write(piece)
    if sent != record.size:
        # It was deleted meanwhile: the length that was told makes the reader notice.
        raise WeirError("the file was deleted while it was read")
    await call.end_stream()


async def delete(door: Door, call: Call) -> None:
    """Delete a file."""
    caller = await door.caller(call, "infer")
    files = cabinet(door)
    record = await files.own(caller.user, call.part)
    await files.remove(record.file)
    await call.answer_json({"id": file_id(record.file), "object": "file", "deleted": True})

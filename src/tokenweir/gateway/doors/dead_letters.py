"""The operator's routes to the queue and its dead letters."""

from __future__ import annotations

from typing import Final

import msgspec

from tokenweir.asgi.call import Call
from tokenweir.core.errors import InputError, NotFoundError
from tokenweir.core.ids import parse_id
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.native import queued
from tokenweir.gateway.queued.kept import request_id

_LISTED: Final = 1000


async def depth(door: Door, call: Call) -> None:
    """Tell how the queue stands."""
    await door.caller(call, "admin")
    await call.answer_json(await queued(door).stores.jobs.depth())


async def listed(door: Door, call: Call) -> None:
    """List dead letters, oldest first."""
    await door.caller(call, "admin")
    letters = await queued(door).graveyard.listed(_LISTED)
    await call.answer_json({"object": "list", "data": [letter.told() for letter in letters]})


async def show(door: Door, call: Call) -> None:
    """Show a dead letter with its events."""
    await door.caller(call, "admin")
    letter = await queued(door).graveyard.show(_id(call.part))
    events = msgspec.to_builtins(letter.events)
    await call.answer_json({**letter.told(), "events": events})


async def replay(door: Door, call: Call) -> None:
    """Have a dead job done again."""
    await door.caller(call, "admin")
    fresh = RequestId.new(door.clock).raw
    done = await queued(door).graveyard.replay(_id(call.part), fresh)
    await call.answer_json({"request_id": request_id(done)}, status=202)


async def drop(door: Door, call: Call) -> None:
    """Forget a dead letter."""
    await door.caller(call, "admin")
    await queued(door).graveyard.drop(_id(call.part))
    await call.answer_nothing()


def _id(text: str) -> bytes:
    try:
        return parse_id(text, prefix="req").uuid.to_bytes(16, "big")
    except InputError as error:
        raise NotFoundError(f"there is no dead letter {text!r}") from error

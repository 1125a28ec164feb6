"""The lines of a batch's output and of its errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from tokenweir.asgi.problems import failure, problem
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Usage
from tokenweir.core.ids import format_id
from tokenweir.core.requests import Json
from tokenweir.gateway.batches.lines import RESPONSES
from tokenweir.gateway.batches.state import Used
from tokenweir.gateway.queued.answers import whole
from tokenweir.gateway.queued.kept import last_answer, request_id
from tokenweir.gateway.queued.reading import Reading
from tokenweir.gateway.responses.shelf import Shelf
from tokenweir.ports.requests import RequestRecord

_OK = 200


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a line: an HTTP answer, or the code of an error of the batch."""

    request: bytes
    status: int = 0
    body: Json = None
    code: str = ""
    message: str = ""

    @property
    def good(self) -> bool:
        """Whether it was answered."""
        return self.status == _OK

    def line(self, custom_id: str) -> bytes:
        """Return the line of a file."""
        response: Json = None
        error: Json = None
        if self.code:
            error = {"code": self.code, "message": self.message}
        else:
            response = {
                "status_code": self.status,
                "request_id": request_id(self.request),
                "body": self.body,
            }
        return (
            msgspec.json.encode(
                {
                    "id": format_id("line", int.from_bytes(self.request, "big")),
                    "custom_id": custom_id,
                    "response": response,
                    "error": error,
                }
            )
            + b"\n"
        )


async def outcome_of(
    reading: Reading, shelf: Shelf, record: RequestRecord, events: Sequence[Event], *, endpoint: str
) -> Outcome:
    """Return what became of a line whose request has ended."""
    end = events[-1]
    match end:
        case Completed() if endpoint == RESPONSES:
            body = cast("Json", (await shelf.whole(record)).response())
            return Outcome(request=record.request, status=_OK, body=body)
        case Completed():
            return Outcome(request=record.request, status=_OK, body=whole(reading.facts(record), events))
        case Cancelled():
            return Outcome(
                request=record.request,
                code="batch_cancelled",
                message="the batch was cancelled before its end",
            )
        case Failed(kind="timeout"):
            return Outcome(
                request=record.request,
                code="batch_expired",
                message="the request was not finished within the completion window",
            )
        case Failed():
            told = problem(failure(end))
            body = cast("Json", msgspec.json.decode(told.body))
            return Outcome(request=record.request, status=told.status, body=body)
        case _:
            return Outcome(request=record.request, code="unfinished", message="the request has no end")


def add_use(used: Used, events: Sequence[Event]) -> None:
    """Count the tokens of a line."""
    usage = next((event for event in reversed(last_answer(events)) if isinstance(event, Usage)), None)
    if usage is not None:
        used.input_tokens += usage.input_tokens or 0
        used.cached_tokens += usage.cached_tokens or 0
        used.output_tokens += usage.output_tokens or 0
        used.reasoning_tokens += usage.reasoning_tokens or 0

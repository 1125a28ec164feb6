"""The pipeline of workers: requests pass it before an endpoint is asked, and the events of their answers after."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenweir.core.errors import WeirError
from tokenweir.core.events import Event, Started
from tokenweir.gateway.direct.body import fields_of
from tokenweir.gateway.metering.usage import KEPT_ENDPOINT
from tokenweir.gateway.pipeline.line import Line
from tokenweir.gateway.pipeline.processor import Ask, Sieve
from tokenweir.gateway.queued.asking import Asker, Attempt, Write, failed
from tokenweir.gateway.queued.kept import Kept, request_id
from tokenweir.ports.requests import RequestRecord


class PipedAsker:
    """Asks endpoints through a line of processors."""

    def __init__(self, asker: Asker, line: Line) -> None:
        self._asker = asker
        self._line = line

    async def ask(self, attempt: Attempt, write: Write) -> list[Event]:
        """Do as :meth:`Asker.ask`; what a processor refuses ends in a ``Failed``."""
        record, kept = attempt.record, attempt.kept
        try:
            began = _ask(record, kept)
            asked = await self._line.ask(began)
        except WeirError as error:
            return attempt.numbered([failed(error)])
        sieves = asked.sieves()
        if asked.ready is not None:
            return attempt.numbered(_sifted(sieves, _told(asked.ready.events, record)))
        # The line may have changed anything but the model: that is what was reserved, and will be charged.
        if asked.ask.fields is not began.fields:
            fields = {**asked.ask.fields, "model": record.model}
            kept = msgspec.structs.replace(kept, body=msgspec.Raw(msgspec.json.encode(fields)))
        inner = Attempt(record=record, kept=kept, seq=0, endpoints=attempt.endpoints)

        async def sifted(events: Sequence[Event]) -> None:
            attempt.tokens = inner.tokens
            found = _sifted(sieves, events)
            if found:
                await write(attempt.numbered(found))

        rest = await self._asker.ask(inner, sifted)
        attempt.tokens = inner.tokens
        return attempt.numbered(_sifted(sieves, rest))


def _ask(record: RequestRecord, kept: Kept) -> Ask:
    return Ask(
        stage="worker",
        request=request_id(record.request),
        path=kept.path,
        fields=fields_of(bytes(kept.body)),
        user=record.user,
        team=record.team,
        key=record.key,
        streamed=kept.streamed(record),
    )


def _sifted(sieves: Sequence[Sieve], events: Sequence[Event]) -> list[Event]:
    found = list(events)
    for sieve in sieves:
        found = sieve.feed(found)
    return found


def _told(events: Sequence[Event], record: RequestRecord) -> list[Event]:
    return [
        msgspec.structs.replace(event, attempt=record.attempt, endpoint=KEPT_ENDPOINT)
        if isinstance(event, Started)
        else event
        for event in events
    ]

"""Responses of a gateway: found by their owners, gone on from, waited for, erased."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from tokenweir.core.errors import ConflictError, InputError, NotFoundError, ParameterError, UnavailableError
from tokenweir.core.events import Event, Failed, Token
from tokenweir.core.ids import parse_id
from tokenweir.core.requests import Json
from tokenweir.gateway.queued.accepting import Wish
from tokenweir.gateway.queued.kept import Kept, file_log
from tokenweir.gateway.queued.node import Queued
from tokenweir.gateway.queued.reading import all_events
from tokenweir.gateway.responses.asked import Asked
from tokenweir.gateway.responses.folding import Facts, Fold, response_id
from tokenweir.gateway.responses.items import Item, messages_of
from tokenweir.gateway.responses.wishes import ROUTE, Said, said_of, wish_of
from tokenweir.ports.access import Caller
from tokenweir.ports.requests import RequestRecord, Resealing

_LOOK_S: Final = 0.01
_LOOK_MOST_S: Final = 0.2
_SETTLES_S: Final = 10.0
_ENDS_S: Final = 5.0


class Shelf:
    """The responses that the queued path of a gateway keeps."""

    def __init__(self, path: Queued) -> None:
        self._path = path
        self._reading = path.reading

    async def own(self, caller: Caller, text: str) -> RequestRecord:
        """Return the request of a caller's response ``resp_…``. Raises NotFoundError, for those of others too."""
        try:
            request = parse_id(text, prefix="resp").uuid.to_bytes(16, "big")
        except InputError:
            raise _none(text) from None
        try:
            record = await self._reading.record(request)
        except NotFoundError:
            raise _none(text) from None
        if record.user != caller.user or record.route != ROUTE:
            raise _none(text)
        said = self.said(record)
        if said.erased or not said.stored:
            raise _none(text)
        return record

    async def again(self, request: bytes, text: str) -> None:
        """Raise NotFoundError where the request that is asked for once more was erased meanwhile."""
        if self.said(await self._reading.record(request)).erased:
            raise _none(text)

    def said(self, record: RequestRecord) -> Said:
        """Return what is kept of a response's request beside its chat."""
        return said_of(self._reading.kept(record))

    def fold(self, record: RequestRecord) -> Fold:
        """Return the fold of a response, which no event has been fed to."""
        return Fold(Facts(request=record.request, at=record.at, said=self.said(record)))

    async def whole(self, record: RequestRecord) -> Fold:
        """Return a response as it is now."""
        fold = self.fold(record)
        fold.feed(await self._reading.events(record))
        return fold

    async def wish(
        self, caller: Caller, asked: Asked, *, raw: bytes, request: bytes, idempotency: str = ""
    ) -> Wish:
        """Return what is to be taken on for a request. Raises ParameterError."""
        before: list[Json] = []
        if asked.previous_response_id is not None:
            before = await self._messages_before(caller, asked.previous_response_id)
        suffix = response_id(request).removeprefix("resp_")
        wish = wish_of(asked, raw=raw, before=before, suffix=suffix, pool=caller.pool)
        return msgspec.structs.replace(wish, idempotency=idempotency)

    async def _messages_before(self, caller: Caller, text: str) -> list[Json]:
        """Return the conversation up to the end of a response, without its instructions."""
        try:
            record = await self.own(caller, text)
        except NotFoundError as error:
            raise ParameterError(
                f"there is no response {text[:80]!r} to go on from",
                param="previous_response_id",
                reason="previous_response_not_found",
                mend="give the id of a stored response of yours",
            ) from error
        fold = await self.whole(record)
        if fold.status not in {"completed", "incomplete"}:
            raise ParameterError(
                f"the response {text!r} is {fold.status}",
                param="previous_response_id",
                mend="go on from one that is completed",
            )
        said = self.said(record)
        items = [*said.items, *_items(fold)]
        return [*said.before, *messages_of(items, place="previous_response_id")]

    async def cancel(self, record: RequestRecord) -> Fold:
        """Have a response stopped, and return it as it is then. One that has ended stays as it is."""
        await self._path.cancelling.cancel(record)
        return await self.end(record)

    async def end(self, record: RequestRecord) -> Fold:
        """Return a response at its end, or as it is when that does not come soon."""
        fold = self.fold(record)
        try:
            async with asyncio.timeout(_ENDS_S):
                async with aclosing(all_events(self._reading, record)) as batches:
                    async for batch in batches:
                        fold.feed(batch)
        except TimeoutError:
            return await self.whole(record)
        return fold

    async def erase(self, record: RequestRecord) -> None:
        """Forget what was asked and answered; that it was, and what it used, stays.

        Raises:
            ConflictError: it has not ended.
            UnavailableError: the stores cannot.
        """
        requests = self._path.stores.requests
        if not isinstance(requests, Resealing):
            raise UnavailableError("these stores cannot erase a response")
        if not (await self.whole(record)).ended:
            raise ConflictError(
                f"the response {response_id(record.request)!r} is being worked on", mend="cancel it first"
            )
        record = await self._settled(record)
        kept = self._reading.kept(record)
        body: dict[str, Json] = {"model": record.model, "messages": []}
        bare = Kept(
            path=kept.path,
            body=msgspec.Raw(msgspec.json.encode(body)),
            said=msgspec.Raw(msgspec.json.encode(Said(erased=True))),
        )
        log = file_log(
            [_bare(event) for event in await self._reading.events(record) if not isinstance(event, Token)]
        )
        seal = self._path.sealer.seal
        await requests.replace(
            [(record.request, seal(record.request, bare.encode()), seal(record.request, log))]
        )

    async def _settled(self, record: RequestRecord) -> RequestRecord:
        """Return a request that has ended once its log is filed with it."""
        wait_s = _LOOK_S
        try:
            async with asyncio.timeout(_SETTLES_S):
                while record.ended_at is None:
                    await asyncio.sleep(wait_s)
                    wait_s = min(_LOOK_MOST_S, 2 * wait_s)
                    record = await self._reading.record(record.request)
        except TimeoutError:
            raise ConflictError(
                f"the response {response_id(record.request)!r} is not settled yet", mend="try again shortly"
            ) from None
        return record


def _items(fold: Fold) -> Sequence[Item]:
    return [output.item() for output in fold.outputs]


def _bare(event: Event) -> Event:
    return msgspec.structs.replace(event, message="") if isinstance(event, Failed) else event


def _none(text: str) -> NotFoundError:
    return NotFoundError(
        f"there is no response {text[:80]!r}", mend="it may have been deleted, or not stored"
    )

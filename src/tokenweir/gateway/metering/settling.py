"""Settling: every reservation ends in one row of the ledger, whatever became of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from tokenweir.core.clock import Clock
from tokenweir.core.errors import DiskFullError, UnavailableError, WeirError
from tokenweir.gateway.batching import Batcher
from tokenweir.gateway.measures import Measures
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.reserving import Reservations
from tokenweir.gateway.metering.usage import TokenCount
from tokenweir.ports.ledger import Charge, Ledger, LedgerRow
from tokenweir.ports.quota import HoldingQuota, OpenReservation, QuotaStore, Settle
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.settling")
_AGAIN_S: Final = 0.5
_REAP_S: Final = 5.0
_REAPED: Final = 500


class Settler:
    """Writes the ends of requests to the ledger, then to the counters. :meth:`run` works until cancelled."""

    def __init__(self, ledger: Ledger, quota: QuotaStore) -> None:
        self._ledger = ledger
        # Counters beside the ledger follow its rows by themselves.
        self._quota = None if isinstance(quota, HoldingQuota) else quota
        self._batcher: Batcher[Charge, bool] = Batcher(self._settle, name="ledger", waiting=262_144)
        self._counting: set[asyncio.Future[TokenCount | None]] = set()
        self._away: WeirError | None = None
        self.measures = Measures()
        """Where rows are counted."""

    @property
    def waiting(self) -> int:
        """How many ends are not written yet."""
        return len(self._batcher) + len(self._counting)

    async def settle(self, charge: Charge) -> bool:
        """Settle a request; ``False``: it was settled before. Waits while the store is away, and loses nothing."""
        return await self._batcher.submit(charge)

    async def settle_all(self, charges: Sequence[Charge]) -> Sequence[bool]:
        """Settle a batch in one call of its own; otherwise as :meth:`settle`."""
        return await self._settle(charges)

    def post(self, charge: Charge) -> None:
        """Settle a request without waiting for it."""
        self._batcher.post(charge)

    def post_after(self, counting: asyncio.Future[TokenCount | None], charged: Callable[[], Charge]) -> None:
        """Settle a request without waiting for it, once what it took is counted; ``charged`` then says it."""

        def done(counting: asyncio.Future[TokenCount | None]) -> None:
            self._counting.discard(counting)
            self.post(charged())

        self._counting.add(counting)
        counting.add_done_callback(done)

    async def drained(self) -> None:
        """Return once all that was to be settled is."""
        while self._counting:
            await asyncio.wait(self._counting)
        await self._batcher.drained()

    def need(self) -> None:
        """Raise what keeps the store from settling; nothing new should be begun that could not be charged."""
        if self._away is not None:
            raise self._away

    @property
    def away(self) -> bool:
        """Whether the store keeps it from settling."""
        return self._away is not None

    async def run(self) -> None:
        """Write what comes."""
        await self._batcher.run()

    async def _settle(self, batch: Sequence[Charge]) -> Sequence[bool]:
        while True:
            try:
                written = await self._ledger.settle(batch)
                if self._quota is not None:
                    await self._quota.settle(
                        [Settle(request=charge.row.request, actual=charge.row.amounts()) for charge in batch]
                    )
            except (UnavailableError, DiskFullError) as error:
                # Both calls may be made again: the ledger takes a row once, and the counters a settlement once.
                _LOG.warning("settling waits for its store", waiting=len(batch), reason=str(error))
                self._away = error
                await asyncio.sleep(_AGAIN_S)
            else:
                self._away = None
                self.measures.wrote([charge for charge, fresh in zip(batch, written, strict=True) if fresh])
                return written


class Reaper:
    """Charges the estimate of reservations whose holder is gone: a crash over-counts, and never under-counts."""

    def __init__(
        self,
        quota: QuotaStore,
        settler: Settler,
        prices: PriceTable,
        clock: Clock,
        *,
        reserving: Reservations,
    ) -> None:
        self._quota = quota
        self._settler = settler
        self._prices = prices
        self._clock = clock
        self._reserving = reserving

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                while await self.reap():
                    pass
            except UnavailableError as error:
                _LOG.warning("the reaper waits for its store", reason=str(error))
            await asyncio.sleep(_REAP_S)

    async def reap(self) -> int:
        """Settle what has expired, and return how many those were."""
        found = await self._quota.expired(_REAPED)
        requests = [reservation.reserve.request for reservation in found]
        # A clock that was put forward ends a lease whose holder is at work here.
        await self._reserving.renew([request for request in requests if self._reserving.works_on(request)])
        for reservation in found:
            if self._reserving.works_on(reservation.reserve.request):
                continue
            if await self._settler.settle(self._charge(reservation)):
                _LOG.warning(
                    "charged the estimate of a request whose end is unknown", request=_hex(reservation)
                )
        return len(found)

    def _charge(self, reservation: OpenReservation) -> Charge:
        reserve = reservation.reserve
        return Charge(
            row=LedgerRow(
                request=reserve.request,
                key=reserve.key,
                user=reserve.user,
                team=reserve.team,
                model=reserve.model,
                endpoint="",
                at=reservation.at,
                settled_at=self._clock.wall_ns(),
                # How an estimate divides is not known; all of it counts as input.
                input_tokens=reserve.estimate.tokens,
                output_tokens=0,
                cost=reserve.estimate.cost,
                currency=self._prices.currency,
                source="estimated",
                ending="failed",
            )
        )


def _hex(reservation: OpenReservation) -> str:
    return reservation.reserve.request.hex()

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from tests.contract.gateway_stores.harness import ABSENT, acceptance, reserve

from tokenweir.core.errors import UnavailableError
from tokenweir.ports.intake import Acceptance
from tokenweir.ports.quota import Granted, Reserve, Reserved
from tokenweir.ports.requests import RequestRecord
from tokenweir.stores.gateway.composed.intake import ComposedIntake
from tokenweir.stores.gateway.postgresql.requests import Written


class Counters:
    """Grants everything under the first epoch, and knows what was given back."""

    def __init__(self) -> None:
        self.released: list[bytes] = []

    async def reserve_accepted(self, batch: Sequence[Reserve]) -> tuple[int, Sequence[Reserved]]:
        return 1, [Granted(request=wanted.request, at=1) for wanted in batch]

    async def release(self, requests: Sequence[bytes]) -> None:
        self.released += requests


class Tables:
    """Commits the first of what it is given, whose answer is lost; then the counters are counted anew."""

    def __init__(self) -> None:
        self.committed: list[Acceptance] = []

    async def write(self, batch: Sequence[tuple[Acceptance, int]], *, epoch: int) -> Written:
        if not self.committed:
            self.committed.append(batch[0][0])
            raise UnavailableError("the connection broke")
        return Written(epoch=epoch + 1, taken=frozenset())

    async def earlier(self, batch: Sequence[Acceptance]) -> Mapping[int, tuple[bytes, bytes]]:
        known = {each.reserve.request: each for each in self.committed}
        return {
            place: (wanted.reserve.request, wanted.body_hash)
            for place, wanted in enumerate(batch)
            if wanted.reserve.request in known
        }

    async def published(self, requests: Sequence[bytes]) -> None:
        """Note nothing."""

    async def unpublished(self, limit: int) -> Sequence[RequestRecord]:
        return ()


def test_what_a_lost_answer_has_committed_keeps_its_reservation_when_the_counters_are_counted_anew() -> None:
    counters, tables = Counters(), Tables()
    first, second = acceptance(reserve()), acceptance(reserve())

    async def story() -> None:
        with pytest.raises(UnavailableError, match="counted anew"):
            await ComposedIntake(counters, tables, ABSENT).accept([first, second])

    asyncio.run(story())
    assert counters.released == [second.reserve.request]

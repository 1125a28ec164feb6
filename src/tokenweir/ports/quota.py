"""Reserving and settling quota: a reservation is a record with an id, a deadline and a state, never a bare counter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from tokenweir.core.quota import Amounts, Limit


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Set an estimate aside for a request (16 bytes), on all its limits or on none.

    ``lease_ns`` is how long the reservation stands without being settled or renewed; then the reaper charges
    it. ``key``, ``user``, ``team`` (16 bytes each, ``team`` may be empty) and ``model`` say who is charged.
    """

    request: bytes
    key: bytes
    user: bytes
    team: bytes
    model: str
    limits: tuple[Limit, ...]
    estimate: Amounts
    lease_ns: int


class Headroom(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a limit after a reservation, and when its window ends (Unix ns)."""

    limit: Limit
    remaining: int
    resets_at: int


class Granted(msgspec.Struct, frozen=True, kw_only=True, tag="granted"):
    """The estimate is set aside. ``at`` is the store's clock: every window of the request is the one that holds it."""

    request: bytes
    at: int
    headroom: tuple[Headroom, ...] = ()


class Denied(msgspec.Struct, frozen=True, kw_only=True, tag="denied"):
    """The estimate does not fit into ``short``; nothing was set aside."""

    request: bytes
    short: Headroom
    headroom: tuple[Headroom, ...] = ()


Reserved: TypeAlias = Granted | Denied


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """Replace a reservation by what was used; zero amounts release it."""

    request: bytes
    actual: Amounts


class OpenReservation(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation that is not settled."""

    reserve: Reserve
    at: int
    expires_at: int


class QuotaStore(Protocol):
    """Counts use against limits, exactly, whoever asks at the same time.

    A counter that is missing is never taken for zero: the store is rebuilt from the ledger first, and until
    then every call raises UnavailableError.
    """

    async def reserve(self, batch: Sequence[Reserve]) -> Sequence[Reserved]:
        """Reserve for each in order; the same request again gives the first answer and counts once."""
        ...

    async def settle(self, batch: Sequence[Settle]) -> Sequence[bool]:
        """Settle each; ``False`` where it was settled before or is unknown, which changes nothing."""
        ...

    async def renew(self, requests: Sequence[bytes], lease_ns: int) -> None:
        """Let open reservations stand for ``lease_ns`` from now."""
        ...

    async def expired(self, limit: int) -> Sequence[OpenReservation]:
        """Return up to ``limit`` open reservations whose lease has run out, oldest first."""
        ...


@runtime_checkable
class HoldingQuota(QuotaStore, Protocol):
    """A quota store within the process, over the ledger's own database.

    It decides without waiting, and writes while the request is worked on: nothing of an answer may be sent before
    what was held for it is kept, or settled. A row of the ledger settles its counters as well.
    """

    def hold(self, wanted: Reserve) -> Reserved | None:
        """Reserve at once for a request that nobody has seen before; ``None``: only :meth:`reserve` can tell."""
        ...

    def held(self, request: bytes) -> bool:
        """Whether what was held for a request would not outlive the process yet."""
        ...

    async def keep(self, request: bytes) -> None:
        """Return once what was held for a request would outlive the process."""
        ...


@runtime_checkable
class QuotaUpkeep(Protocol):
    """Rebuilding and proving the counters, from the ledger and the open reservations."""

    async def rebuild(self) -> int:
        """Count everything anew and return the number of counters; reservations wait meanwhile."""
        ...

    async def verify(self) -> Sequence[str]:
        """Return a line for each counter that differs from ledger plus open reservations; empty is proof."""
        ...

    async def use(self, limits: Sequence[Limit]) -> Sequence[Headroom]:
        """Return what is left of each limit now."""
        ...


@runtime_checkable
class CountsReservations(Protocol):
    """A quota store that knows how many reservations are open."""

    async def open_reservations(self) -> int:
        """Return how many there are, of all who use the store. Raises UnavailableError."""
        ...

"""The line of waiting tickets: by priority, with ageing, so that nothing waits for ever."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Final

from tokenweir.runtime.options import Priority
from tokenweir.runtime.scheduling.tickets import Ticket

RANK: Final[dict[Priority, int]] = {"interactive": 0, "normal": 1, "background": 2}
"""Lower goes first."""

Lane = tuple[str, bool]
"""A model, and whether it is its exclusive lane: tickets of one lane wait for the same place."""

_Key = tuple[int, int]


class Line:
    """Waiting tickets in the order in which they are served.

    Formula: a ticket stands at its arrival + rank · ``ageing_ns``, ties by arrival in line. So a higher priority
    goes ahead of what arrived up to ``ageing_ns`` earlier, and nobody is overtaken by what arrives more than twice
    ``ageing_ns`` after him.
    """

    __slots__ = ("_ageing_ns", "_count", "_keys", "_lanes", "_of", "_tickets")

    def __init__(self, *, ageing_ns: int) -> None:
        self._ageing_ns = ageing_ns
        self._count = 0
        self._keys: list[_Key] = []
        self._tickets: list[Ticket] = []
        self._of: dict[int, _Key] = {}
        self._lanes: dict[Lane, int] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def __contains__(self, ticket_id: object) -> bool:
        return ticket_id in self._of

    @property
    def lanes(self) -> set[Lane]:
        """The lanes in which somebody waits."""
        return set(self._lanes)

    def add(self, ticket: Ticket, now_ns: int) -> int:
        """Put a ticket in its place, and return how many stand before it."""
        self._count += 1
        key = (now_ns + RANK[ticket.priority] * self._ageing_ns, self._count)
        place = bisect.bisect(self._keys, key)
        self._keys.insert(place, key)
        self._tickets.insert(place, ticket)
        self._of[ticket.id] = key
        lane = (ticket.model, ticket.exclusive)
        self._lanes[lane] = self._lanes.get(lane, 0) + 1
        return place

    def remove(self, ticket_id: int) -> Ticket | None:
        """Take a ticket out of the line and return it, ``None`` where it does not stand in it."""
        key = self._of.pop(ticket_id, None)
        if key is None:
            return None
        place = bisect.bisect_left(self._keys, key)
        del self._keys[place]
        ticket = self._tickets.pop(place)
        lane = (ticket.model, ticket.exclusive)
        self._lanes[lane] -= 1
        if not self._lanes[lane]:
            del self._lanes[lane]
        return ticket

    def position(self, ticket_id: int) -> int | None:
        """Return how many stand before a ticket, ``None`` where it does not stand in line."""
        key = self._of.get(ticket_id)
        return None if key is None else bisect.bisect_left(self._keys, key)

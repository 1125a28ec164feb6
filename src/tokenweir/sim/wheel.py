"""The timing wheel: what is due, in slots of a fraction of a millisecond."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final, Generic, TypeVar

ItemT = TypeVar("ItemT")

SLOT_BITS: Final = 17
"""A slot is 2**17 ns, 0.13 ms, so that finding it is a shift."""


class TimingWheel(Generic[ItemT]):
    """Timers hashed by the slot they are due in; adding one is O(1), and nothing is ever given early.

    Slots exist only while they hold something, and a heap orders the few that do, so an idle wheel costs
    nothing and the next due time is known without a scan. An item is given at the end of its slot: late by up
    to one slot, never early. A timer cannot be removed; its item has to know that it is no longer wanted.
    """

    __slots__ = ("_bits", "_ticks", "slots")

    def __init__(self, bits: int = SLOT_BITS) -> None:
        self._bits = bits
        self.slots: dict[int, list[ItemT]] = {}
        """By tick: the items due before it, for callers in a hurry; only :meth:`add` makes new slots."""
        self._ticks: list[int] = []

    def add(self, due_ns: int, item: ItemT) -> None:
        """Give ``item`` once the clock has reached ``due_ns``."""
        tick = (due_ns >> self._bits) + 1
        slot = self.slots.get(tick)
        if slot is None:
            self.slots[tick] = [item]
            heappush(self._ticks, tick)
        else:
            slot.append(item)

    def next_ns(self) -> int | None:
        """Return when the next slot ends; ``None`` when nothing is awaited."""
        return self._ticks[0] << self._bits if self._ticks else None

    def take(self, now_ns: int, limit: int) -> list[ItemT] | None:
        """Return up to ``limit`` items of the earliest slot if it has ended, oldest first, else ``None``."""
        ticks = self._ticks
        if not ticks or ticks[0] << self._bits > now_ns:
            return None
        slot = self.slots[ticks[0]]
        if len(slot) > limit:
            self.slots[ticks[0]] = slot[limit:]
            return slot[:limit]
        return self.slots.pop(heappop(ticks))

    def __len__(self) -> int:
        return sum(map(len, self.slots.values()))

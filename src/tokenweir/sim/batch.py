"""Admission: how many requests run at once, and how many tokens of KV cache they may hold."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Tenant(Protocol):
    """What asks for a place in the batch. ``reserved_tokens`` is its input and the longest output."""

    reserved_tokens: int


TenantT = TypeVar("TenantT", bound=Tenant)


class Batch(Generic[TenantT]):
    """Places and tokens, first come first served: who is next waits even where a later one would fit.

    A limit of 0 is no limit.
    """

    __slots__ = ("kv_tokens", "max_running", "max_waiting", "running", "used_tokens", "waiting")

    def __init__(self, *, max_running: int, max_waiting: int, kv_tokens: int) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.kv_tokens = kv_tokens
        self.running = 0
        self.used_tokens = 0
        self.waiting: deque[TenantT] = deque()

    def fits(self, tenant: TenantT) -> bool:
        """Return whether the tenant would fit into an empty batch."""
        return not self.kv_tokens or tenant.reserved_tokens <= self.kv_tokens

    def full(self) -> bool:
        """Return whether a further tenant could not even wait."""
        return bool(self.max_waiting) and len(self.waiting) >= self.max_waiting

    def offer(self, tenant: TenantT) -> bool:
        """Admit the tenant and return true, or queue it."""
        if not self.waiting and self._room(tenant):
            self._admit(tenant)
            return True
        self.waiting.append(tenant)
        return False

    def leave(self, tenant: TenantT) -> None:
        """Free what an admitted tenant held. Follow with :meth:`admit`."""
        self.running -= 1
        self.used_tokens -= tenant.reserved_tokens

    def withdraw(self, tenant: TenantT) -> None:
        """Take a waiting tenant out of the queue. Follow with :meth:`admit`: it may have held up others."""
        self.waiting.remove(tenant)

    def admit(self) -> list[TenantT]:
        """Admit from the head of the queue as many as there is room for, and return them."""
        admitted: list[TenantT] = []
        while self.waiting and self._room(self.waiting[0]):
            tenant = self.waiting.popleft()
            self._admit(tenant)
            admitted.append(tenant)
        return admitted

    def _room(self, tenant: TenantT) -> bool:
        if self.max_running and self.running >= self.max_running:
            return False
        return not self.kv_tokens or self.used_tokens + tenant.reserved_tokens <= self.kv_tokens

    def _admit(self, tenant: TenantT) -> None:
        self.running += 1
        self.used_tokens += tenant.reserved_tokens

"""Who calls: what a presented API key allows."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec

from tokenweir.core.quota import Limit

Permission = Literal["infer", "read", "run", "admin"]
"""What a credential may do: ask models, read records, start runs, administer. ``admin`` implies the others."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of a valid key. Ids are 16 bytes; ``team`` is empty for a user without one.

    ``models`` lists the models the key may ask; empty allows all. ``limits`` are those that apply to it, its
    user and its team. ``priority`` (0–9) and ``pool`` come from the tier.
    """

    key: bytes
    user: bytes
    team: bytes
    scopes: frozenset[Permission]
    models: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    tier: str = ""
    priority: int = 5
    pool: str = ""

    def may(self, permission: Permission) -> bool:
        """Whether the key carries a permission."""
        return permission in self.scopes or "admin" in self.scopes

    def may_ask(self, model: str) -> bool:
        """Whether the key may ask a model."""
        return not self.models or model in self.models

    def limits_for(self, model: str) -> tuple[Limit, ...]:
        """Return the limits that a request to ``model`` counts against."""
        return tuple(limit for limit in self.limits if limit.model in {"", model})


class Keyring(Protocol):
    """Finds the caller of a key."""

    def cached(self, key: str) -> Caller | None:
        """Return the caller if the key was seen a moment ago, without waiting."""
        ...

    async def authenticate(self, key: str) -> Caller:
        """Return the caller. Raises UnauthorizedError for a key that is malformed, unknown, revoked or expired."""
        ...


@runtime_checkable
class Owners(Protocol):
    """Finds callers whose keys are not at hand: of work that goes on after its request."""

    async def owner(self, key: bytes) -> Caller | None:
        """Return the caller of a key by its id (16 bytes); ``None``: it counts no more.

        Raises UnavailableError where nobody can say.
        """
        ...

"""Users, teams, keys, tiers and limits: made, changed and listed. Every change moves the revision that caches watch."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, cast

import msgspec
import sqlalchemy as sa

from tokenweir.access.keys import make_key
from tokenweir.access.schema import (
    BRANCH,
    KEYS,
    LIMITS,
    REVISION,
    SCRIPTS,
    TEAMS,
    TIERS,
    USERS,
)
from tokenweir.core.clock import Clock, SystemClock
from tokenweir.core.errors import InputError, NotFoundError
from tokenweir.core.ids import format_id, uuid7
from tokenweir.core.quota import Limit, Unit, Window
from tokenweir.ports.access import Caller, Permission
from tokenweir.stores.migrate import upgrade
from tokenweir.stores.records import reading, records_engine, writing

LimitScope = Literal["key", "user", "team", "tier"]

PERMISSIONS: Final[tuple[Permission, ...]] = ("infer", "read", "run", "admin")
_LONGEST_NAME: Final = 128
_LONGEST_TIER: Final = 64
_LONGEST_MODEL: Final = 512
_HIGHEST_PRIORITY: Final = 9


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """People whose use is counted together."""

    id: bytes
    name: str
    tier: str
    created_at: int


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who holds keys. ``team`` is empty for one without."""

    id: bytes
    name: str
    team: bytes
    tier: str
    created_at: int
    disabled_at: int | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key: everything but the key."""

    id: bytes
    user: bytes
    name: str
    scopes: frozenset[Permission]
    models: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """How well somebody is served: ``priority`` 0–9, higher first, and the pool of endpoints used ("" is all)."""

    name: str
    priority: int = 5
    pool: str = ""


class StoredLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as it is set: on a key, user or team, or on all who have a tier."""

    scope: LimitScope
    subject: bytes
    unit: Unit
    window: Window
    amount: int
    model: str = ""


class Directory:
    """The directory over a records store: SQLite or PostgreSQL. Calls block; servers make them in a thread."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        """Open the store and bring its tables to the newest revision. Raises ConfigError, RecordError."""
        self._engine = records_engine(url)
        self._clock = clock or SystemClock()
        upgrade(self._engine, scripts=SCRIPTS, branch=BRANCH)

    def close(self) -> None:
        """Let go of the store."""
        self._engine.dispose()

    @contextmanager
    def _change(self) -> Generator[sa.Connection]:
        with writing(self._engine) as connection:
            yield connection
            connection.execute(REVISION.update().values(revision=REVISION.c.revision + 1))

    def revision(self) -> int:
        """Return a number that grows with every change."""
        with reading(self._engine) as connection:
            return int(connection.execute(sa.select(REVISION.c.revision)).scalar_one())

    # -- teams, users, tiers --------------------------------------------------------------------------------------

    def add_team(self, name: str, *, tier: str = "") -> Team:
        """Make a team. Raises InputError: the name is taken or the tier unknown."""
        team = Team(id=self._id(), name=_named("team", name), tier=tier, created_at=self._clock.wall_ns())
        with self._change() as connection:
            _need_tier(connection, tier)
            _need_free(connection, TEAMS, "team", name)
            connection.execute(TEAMS.insert().values(**msgspec.structs.asdict(team)))
        return team

    def teams(self) -> Sequence[Team]:
        """Return all teams by name."""
        return [Team(**row) for row in self._rows(sa.select(TEAMS).order_by(TEAMS.c.name))]

    def add_user(self, name: str, *, team: str = "", tier: str = "") -> User:
        """Make a user, in a team by its name. Raises InputError, NotFoundError."""
        with self._change() as connection:
            _need_tier(connection, tier)
            _need_free(connection, USERS, "user", _named("user", name))
            user = User(
                id=self._id(),
                name=name,
                team=_id_by_name(connection, TEAMS, "team", team) if team else b"",
                tier=tier,
                created_at=self._clock.wall_ns(),
            )
            connection.execute(USERS.insert().values(**msgspec.structs.asdict(user)))
        return user

    def users(self) -> Sequence[User]:
        """Return all users by name."""
        return [User(**row) for row in self._rows(sa.select(USERS).order_by(USERS.c.name))]

    def user(self, name: str) -> User:
        """Return a user by name. Raises NotFoundError."""
        for row in self._rows(sa.select(USERS).where(USERS.c.name == name)):
            return User(**row)
        raise _unknown("user", name)

    def disable_user(self, name: str, *, disabled: bool = True) -> User:
        """Refuse, or accept again, all keys of a user. Raises NotFoundError."""
        at = self._clock.wall_ns() if disabled else None
        with self._change() as connection:
            _id_by_name(connection, USERS, "user", name)
            connection.execute(USERS.update().where(USERS.c.name == name).values(disabled_at=at))
        return self.user(name)

    def set_tier(self, tier: Tier) -> None:
        """Make a tier or change it. Raises InputError for a priority out of range."""
        if not 0 <= tier.priority <= _HIGHEST_PRIORITY:
            raise InputError(f"a priority of {tier.priority!r} is out of range", mend="it is 0 to 9")
        _named("tier", tier.name, longest=_LONGEST_TIER)
        if tier.pool:
            _named("pool", tier.pool, longest=_LONGEST_TIER)
        with self._change() as connection:
            connection.execute(TIERS.delete().where(TIERS.c.name == tier.name))
            connection.execute(TIERS.insert().values(**msgspec.structs.asdict(tier)))

    def tiers(self) -> Sequence[Tier]:
        """Return all tiers by name."""
        return [Tier(**row) for row in self._rows(sa.select(TIERS).order_by(TIERS.c.name))]

    # -- keys -----------------------------------------------------------------------------------------------------

    def issue(
        self,
        user: str,
        name: str,
        *,
        scopes: Iterable[Permission] = ("infer", "read"),
        models: Sequence[str] = (),
        lifetime_ns: int | None = None,
    ) -> tuple[Key, str]:
        """Make a key for a user; return it with its text, which is not kept and cannot be shown again.

        Raises:
            NotFoundError: there is no such user.
            InputError: a scope is unknown, the name is none, or the lifetime is not positive.
        """
        wanted = frozenset(scopes)
        unknown = sorted(wanted - set(PERMISSIONS))
        if unknown or not wanted:
            raise InputError(
                f"{unknown[0]!r} is no scope" if unknown else "a key needs a scope",
                mend=f"choose of {', '.join(PERMISSIONS)}",
            )
        if lifetime_ns is not None and lifetime_ns <= 0:
            raise InputError(
                f"a lifetime of {lifetime_ns} ns ends before it begins", mend="give a positive one"
            )
        if name:
            _named("key", name)
        made, now = make_key(), self._clock.wall_ns()
        with self._change() as connection:
            key = Key(
                id=made.id,
                user=_id_by_name(connection, USERS, "user", user),
                name=name,
                scopes=wanted,
                models=tuple(models),
                created_at=now,
                expires_at=None if lifetime_ns is None else now + lifetime_ns,
            )
            connection.execute(KEYS.insert().values(**_key_row(key, made.digest)))
        return key, made.text

    def keys(self, user: str | None = None) -> Sequence[Key]:
        """Return the keys, oldest first, of one user or of all."""
        query = sa.select(KEYS).order_by(KEYS.c.id)
        if user is not None:
            query = query.where(KEYS.c.user == self.user(user).id)
        return [_key(row) for row in self._rows(query)]

    def revoke(self, key: bytes, *, after_ns: int = 0) -> Key:
        """Refuse a key from now, or after a while; one that is refused earlier stays so. Raises NotFoundError."""
        at = self._clock.wall_ns() + after_ns
        earlier = sa.case((KEYS.c.revoked_at <= at, KEYS.c.revoked_at), else_=at)
        with self._change() as connection:
            changed = connection.execute(KEYS.update().where(KEYS.c.id == key).values(revoked_at=earlier))
            if changed.rowcount == 0:
                raise _unknown("key", format_id("key", int.from_bytes(key, "big")))
        return self.key(key)

    def rotate(self, key: bytes, *, overlap_ns: int = 0) -> tuple[Key, str]:
        """Make a key like another, which is refused once ``overlap_ns`` have passed. Raises NotFoundError."""
        old = self.key(key)
        (name,) = [user.name for user in self.users() if user.id == old.user]
        lifetime = None if old.expires_at is None else old.expires_at - old.created_at
        made = self.issue(name, old.name, scopes=old.scopes, models=old.models, lifetime_ns=lifetime)
        for limit in self.limits("key", key):
            self.set_limit(msgspec.structs.replace(limit, subject=made[0].id))
        self.revoke(key, after_ns=overlap_ns)
        return made

    def key(self, key: bytes) -> Key:
        """Return what is known of a key, by its id. Raises NotFoundError."""
        for row in self._rows(sa.select(KEYS).where(KEYS.c.id == key)):
            return _key(row)
        raise _unknown("key", format_id("key", int.from_bytes(key, "big")))

    # -- limits ---------------------------------------------------------------------------------------------------

    def set_limit(self, limit: StoredLimit) -> None:
        """Set a limit or change it. Raises InputError for a negative amount, or a model's name that is none."""
        if limit.model:
            _named("model", limit.model, longest=_LONGEST_MODEL)
        if limit.amount < 0:
            raise InputError(f"a limit of {limit.amount} lets nothing pass", mend="0 forbids, more allows")
        with self._change() as connection:
            connection.execute(LIMITS.delete().where(*_same(limit)))
            connection.execute(LIMITS.insert().values(**msgspec.structs.asdict(limit)))

    def remove_limit(self, limit: StoredLimit) -> bool:
        """Remove a limit, whatever its amount; ``False``: there was none."""
        with self._change() as connection:
            return connection.execute(LIMITS.delete().where(*_same(limit))).rowcount > 0

    def limits(self, scope: LimitScope | None = None, subject: bytes = b"") -> Sequence[StoredLimit]:
        """Return the limits set on a key, user, team or tier; without one, all there are."""
        query = sa.select(LIMITS)
        if scope is not None:
            query = query.where(LIMITS.c.scope == scope, LIMITS.c.subject == subject)
        return [StoredLimit(**row) for row in self._rows(query)]

    # -- callers --------------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> tuple[bytes, Caller, int | None] | None:
        """Return a key's digest, its caller, and until when both hold; ``None`` for one that is refused."""
        query = (
            sa.select(KEYS, USERS.c.team, USERS.c.tier, USERS.c.disabled_at, TEAMS.c.tier.label("team_tier"))
            .join(USERS, USERS.c.id == KEYS.c.user)
            .outerjoin(TEAMS, TEAMS.c.id == USERS.c.team)
            .where(KEYS.c.id == key)
        )
        rows = self._rows(query)
        if not rows:
            return None
        row = rows[0]
        ends = [end for end in (row["expires_at"], row["revoked_at"]) if end is not None]
        if row["disabled_at"] is not None or (ends and min(ends) <= self._clock.wall_ns()):
            return None
        tier = self._tier(row["tier"] or row["team_tier"] or "")
        caller = Caller(
            key=key,
            user=row["user"],
            team=row["team"],
            scopes=_scopes(row["scopes"]),
            models=tuple(json.loads(row["models"])),
            limits=self._limits_of(key, row["user"], row["team"], tier.name),
            tier=tier.name,
            priority=tier.priority,
            pool=tier.pool,
        )
        return row["digest"], caller, min(ends) if ends else None

    def _tier(self, name: str) -> Tier:
        rows = self._rows(sa.select(TIERS).where(TIERS.c.name == name)) if name else []
        return Tier(**rows[0]) if rows else Tier(name=name)

    def _limits_of(self, key: bytes, user: bytes, team: bytes, tier: str) -> tuple[Limit, ...]:
        """Return all that applies. A tier's limit is the user's own, unless the user has one of that kind set."""
        own = [
            Limit(
                scope=limit.scope,
                subject=limit.subject,
                unit=limit.unit,
                window=limit.window,
                amount=limit.amount,
                model=limit.model,
            )
            for scope, subject in (("key", key), ("user", user), ("team", team))
            for limit in self.limits(cast("LimitScope", scope), subject)
            if subject and limit.scope != "tier"
        ]
        kinds = {(limit.unit, limit.window, limit.model) for limit in own if limit.scope == "user"}
        given = [
            Limit(
                scope="user",
                subject=user,
                unit=limit.unit,
                window=limit.window,
                amount=limit.amount,
                model=limit.model,
            )
            for limit in (self.limits("tier", tier.encode()) if tier else ())
            if (limit.unit, limit.window, limit.model) not in kinds
        ]
        return (*own, *given)

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with reading(self._engine) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _id(self) -> bytes:
        return uuid7(time.time_ns(), secrets.randbits(62)).to_bytes(16, "big")


def _named(kind: str, name: str, *, longest: int = _LONGEST_NAME) -> str:
    if not name or len(name) > longest or name != name.strip() or not name.isprintable():
        raise InputError(
            f"{name!r} is no name for a {kind}",
            mend=f"use 1 to {longest} printable characters, no space at either end",
        )
    return name


def _unknown(kind: str, name: str) -> NotFoundError:
    return NotFoundError(f"there is no {kind} {name!r}", mend=f"weir {kind}s list shows those there are")


def _id_by_name(connection: sa.Connection, table: sa.Table, kind: str, name: str) -> bytes:
    found = connection.execute(sa.select(table.c.id).where(table.c.name == name)).scalar_one_or_none()
    if found is None:
        raise _unknown(kind, name)
    return cast("bytes", found)


def _need_free(connection: sa.Connection, table: sa.Table, kind: str, name: str) -> None:
    if connection.execute(sa.select(table.c.id).where(table.c.name == name)).first() is not None:
        raise InputError(f"there is a {kind} {name!r} already", mend="choose another name")


def _need_tier(connection: sa.Connection, tier: str) -> None:
    if tier and connection.execute(sa.select(TIERS.c.name).where(TIERS.c.name == tier)).first() is None:
        raise _unknown("tier", tier)


def _same(limit: StoredLimit) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        LIMITS.c.scope == limit.scope,
        LIMITS.c.subject == limit.subject,
        LIMITS.c.model == limit.model,
        LIMITS.c.unit == limit.unit,
        LIMITS.c.window == limit.window,
    )


def _scopes(text: str) -> frozenset[Permission]:
    return frozenset(cast("list[Permission]", text.split()))


def _key_row(key: Key, digest: bytes) -> dict[str, object]:
    row = msgspec.structs.asdict(key)
    return {
        **row,
        "digest": digest,
        "scopes": " ".join(sorted(key.scopes)),
        "models": json.dumps(list(key.models)),
    }


def _key(row: dict[str, Any]) -> Key:
    values: dict[str, Any] = {name: row[name] for name in Key.__struct_fields__}
    values["scopes"] = _scopes(row["scopes"])
    values["models"] = tuple(json.loads(row["models"]))
    return Key(**values)

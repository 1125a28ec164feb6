"""The admin routes of users, teams, tiers and keys: what ``weir users`` and ``weir keys`` do."""

from __future__ import annotations

import time
from typing import Final, TypeVar

import msgspec

from tokenweir.access.directory import Directory, Key, Team, Tier, User
from tokenweir.access.wording import key_id, key_text, lifetime, need_known
from tokenweir.asgi.call import Call
from tokenweir.core.errors import NotFoundError, ParameterError
from tokenweir.core.ids import format_id
from tokenweir.gateway.administration import Administration
from tokenweir.gateway.direct.body import UNDECODABLE, no_json
from tokenweir.gateway.doors import admin_schemas as said
from tokenweir.gateway.doors.door import Door
from tokenweir.gateway.doors.queries import query

T = TypeVar("T", bound=msgspec.Struct)

_CREATED: Final = 201
_S: Final = 1_000_000_000


def administration(door: Door) -> Administration:
    """Return what administers. Raises NotFoundError where this gateway is not administered over HTTP."""
    if door.administration is None:
        raise NotFoundError("this gateway is not administered here", mend="use weir keys, users and quotas")
    return door.administration


async def body_of(door: Door, call: Call, kind: type[T]) -> T:
    """Return a request's body; an empty one says nothing. Raises ParameterError."""
    raw = await door.body(call)
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _unusable(error, "body") from error
    except UNDECODABLE as error:
        raise no_json(error) from error


def query_of(call: Call, kind: type[T]) -> T:
    """Return a request's query. Raises ParameterError."""
    fields = query(call, *(field.name for field in msgspec.structs.fields(kind)))
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _unusable(error, "query") from error


def _unusable(error: msgspec.ValidationError, where: str) -> ParameterError:
    message = str(error)
    field = message.rpartition("`$.")[2].rstrip("`") if "`$." in message else ""
    return ParameterError(
        f"the {where} cannot be used: {message}",
        param=field or where,
        reason="missing_required_parameter" if "missing required" in message else "invalid_value",
        mend="GET /openapi.json describes it",
    )


# -- users, teams, tiers ----------------------------------------------------------------------------------------------


async def users(door: Door, call: Call) -> None:
    """List users by name."""
    await door.caller(call, "admin")
    found = await administration(door).read(
        lambda directory: [_user(directory, user) for user in directory.users()]
    )
    await call.answer_json(said.UserList(data=found))


async def add_user(door: Door, call: Call) -> None:
    """Add a user."""
    caller = await door.caller(call, "admin")
    wanted = await body_of(door, call, said.NewUser)
    made = await administration(door).change(
        caller,
        f"user {wanted.name} added",
        lambda directory: _user(
            directory, directory.add_user(wanted.name, team=wanted.team, tier=wanted.tier)
        ),
    )
    await call.answer_json(made, status=_CREATED)


async def user(door: Door, call: Call) -> None:
    """Describe a user."""
    await door.caller(call, "admin")
    found = await administration(door).read(
        lambda directory: _user(directory, directory.user(_name(call.part)))
    )
    await call.answer_json(found)


async def change_user(door: Door, call: Call) -> None:
    """Refuse, or accept again, all keys of a user."""
    caller = await door.caller(call, "admin")
    wanted = await body_of(door, call, said.UserChange)
    name = _name(call.part)
    changed = await administration(door).change(
        caller,
        f"user {name} {'disabled' if wanted.disabled else 'enabled'}",
        lambda directory: _user(directory, directory.disable_user(name, disabled=wanted.disabled)),
    )
    await call.answer_json(changed)


async def teams(door: Door, call: Call) -> None:
    """List teams by name."""
    await door.caller(call, "admin")
    found = await administration(door).read(Directory.teams)
    await call.answer_json(said.TeamList(data=[_team(team) for team in found]))


async def add_team(door: Door, call: Call) -> None:
    """Add a team."""
    caller = await door.caller(call, "admin")
    wanted = await body_of(door, call, said.NewTeam)
    made = await administration(door).change(
        caller,
        f"team {wanted.name} added",
        lambda directory: directory.add_team(wanted.name, tier=wanted.tier),
    )
    await call.answer_json(_team(made), status=_CREATED)


async def tiers(door: Door, call: Call) -> None:
    """List tiers by name."""
    await door.caller(call, "admin")
    found = await administration(door).read(Directory.tiers)
    await call.answer_json(said.TierList(data=[_tier(tier) for tier in found]))


async def set_tier(door: Door, call: Call) -> None:
    """Make a tier, or change it."""
    caller = await door.caller(call, "admin")
    wanted = await body_of(door, call, said.TierBody)
    tier = Tier(name=_name(call.part), priority=wanted.priority, pool=wanted.pool)
    await administration(door).change(
        caller, f"tier {tier.name} set", lambda directory: directory.set_tier(tier)
    )
    await call.answer_json(_tier(tier))


# -- keys -------------------------------------------------------------------------------------------------------------


async def keys(door: Door, call: Call) -> None:
    """List keys, oldest first, of one user or of all."""
    await door.caller(call, "admin")
    of = query_of(call, said.KeyQuery).user

    def find(directory: Directory) -> list[said.KeyAnswer]:
        found = directory.keys(of)
        names = {user.id: user.name for user in directory.users()}
        return [_key(key, names.get(key.user, "")) for key in found]

    await call.answer_json(said.KeyList(data=await administration(door).read(find)))


async def create_key(door: Door, call: Call) -> None:
    """Make a key; its secret is told this once."""
    caller = await door.caller(call, "admin")
    wanted = await body_of(door, call, said.NewKey)
    lasts_ns = lifetime(wanted.expires) if wanted.expires is not None else None
    need_known(wanted.models, door.direct.pool.models)

    def make(directory: Directory) -> said.MadeKey:
        key, secret = directory.issue(
            wanted.user, wanted.name, scopes=wanted.scopes, models=wanted.models, lifetime_ns=lasts_ns
        )
        return _made(key, wanted.user, secret)

    made = await administration(door).change(caller, f"key for {wanted.user} made", make)
    await call.answer_json(made, status=_CREATED)


async def key(door: Door, call: Call) -> None:
    """Describe a key."""
    await door.caller(call, "admin")
    id_ = key_id(call.part)
    await call.answer_json(await administration(door).read(lambda directory: _shown_key(directory, id_)))


async def revoke_key(door: Door, call: Call) -> None:
    """Refuse a key from now on."""
    caller = await door.caller(call, "admin")
    id_ = key_id(call.part)

    def revoke(directory: Directory) -> said.KeyAnswer:
        directory.revoke(id_)
        return _shown_key(directory, id_)

    await call.answer_json(await administration(door).change(caller, f"{key_text(id_)} revoked", revoke))


async def rotate_key(door: Door, call: Call) -> None:
    """Make a key like another, with its limits, and refuse the old one once the overlap is over."""
    caller = await door.caller(call, "admin")
    wanted = await body_of(door, call, said.Rotation)
    overlap_ns, id_ = lifetime(wanted.overlap), key_id(call.part)

    def rotate(directory: Directory) -> said.MadeKey:
        made, secret = directory.rotate(id_, overlap_ns=overlap_ns)
        return _made(made, _shown_key(directory, made.id).user, secret)

    made = await administration(door).change(caller, f"{key_text(id_)} rotated", rotate)
    await call.answer_json(made, status=_CREATED)


# -- as they are shown ------------------------------------------------------------------------------------------------


def _name(part: str) -> str:
    """Return the name in a path. Raises NotFoundError for what can be none."""
    if not part.isprintable():
        raise NotFoundError(f"there is none called {part[:80]!r}")
    return part


def _user(directory: Directory, user: User) -> said.UserAnswer:
    teams = {team.id: team.name for team in directory.teams()} if user.team else {}
    return said.UserAnswer(
        id=format_id("user", int.from_bytes(user.id, "big")),
        name=user.name,
        team=teams.get(user.team, ""),
        tier=user.tier,
        created_at=user.created_at // _S,
        disabled=user.disabled_at is not None,
    )


def _team(team: Team) -> said.TeamAnswer:
    return said.TeamAnswer(
        id=format_id("team", int.from_bytes(team.id, "big")),
        name=team.name,
        tier=team.tier,
        created_at=team.created_at // _S,
    )


def _tier(tier: Tier) -> said.TierAnswer:
    return said.TierAnswer(name=tier.name, priority=tier.priority, pool=tier.pool)


def _shown_key(directory: Directory, key: bytes) -> said.KeyAnswer:
    found = directory.key(key)
    return _key(found, next((user.name for user in directory.users() if user.id == found.user), ""))


def _key(key: Key, user: str) -> said.KeyAnswer:
    ends = [end for end in (key.expires_at, key.revoked_at) if end is not None]
    over = bool(ends) and min(ends) <= time.time_ns()
    return said.KeyAnswer(
        id=key_text(key.id),
        user=user,
        name=key.name,
        scopes=sorted(key.scopes),
        models=list(key.models),
        created_at=key.created_at // _S,
        expires_at=None if key.expires_at is None else key.expires_at // _S,
        revoked_at=None if key.revoked_at is None else key.revoked_at // _S,
        state="valid" if not over else "revoked" if key.revoked_at == min(ends) else "expired",
    )


def _made(key: Key, user: str, secret: str) -> said.MadeKey:
    return said.MadeKey(**msgspec.structs.asdict(_key(key, user)), secret=secret)

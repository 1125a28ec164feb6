"""Keys, spans and limits as people write them: for commands and for the admin API alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from tokenweir.access.directory import Directory, LimitScope, StoredLimit
from tokenweir.core.errors import InputError, NotFoundError
from tokenweir.core.ids import format_id, parse_id
from tokenweir.core.quota import Unit
from tokenweir.core.units import parse_duration

_DAY: Final = "d"
_DAY_NS: Final = 86_400_000_000_000
_LONGEST_DAYS: Final = 36_500
COST_UNIT: Final = 1_000_000
"""Cost is counted in millionths."""
_AMOUNT_MOST: Final = 2**62
_SCOPES: Final[tuple[LimitScope, ...]] = ("tier", "team", "user", "key")


def key_text(key: bytes) -> str:
    """Return a key's id as it is shown: ``key_…``."""
    return format_id("key", int.from_bytes(key, "big"))


def key_id(text: str) -> bytes:
    """Read a key's id. Raises NotFoundError, since a malformed id names no key."""
    try:
        return parse_id(text, prefix="key").uuid.to_bytes(16, "big")
    except InputError as error:
        raise NotFoundError(f"there is no key {text!r}", mend="weir keys list shows their ids") from error


def lifetime(text: str) -> int:
    """Read how long something lasts: days (``90d``), or a duration. Raises InputError."""
    days = text[:-1]
    if text.endswith(_DAY) and days.isascii() and days.isdigit():
        lasts_ns = int(days[:9]) * _DAY_NS
    else:
        try:
            lasts_ns = parse_duration(text, what="lifetime")
        except InputError as error:
            raise InputError(
                error.message, mend="write a number and a unit, such as 5d, 12h or 30m"
            ) from error
    if lasts_ns > _LONGEST_DAYS * _DAY_NS:
        raise InputError(f"{text[:20]} is longer than {_LONGEST_DAYS} days", mend="leave it out for no end")
    return lasts_ns


def subject(directory: Directory, given: Mapping[str, str | None]) -> tuple[LimitScope, bytes]:
    """Return whose limit is meant: of the names by kind (key, user, team, tier) exactly one is given.

    Raises InputError, and NotFoundError where there is none of that name.
    """
    said = [(scope, name) for scope, name in given.items() if name is not None]
    if len(said) != 1:
        raise InputError("a limit belongs to one of them", mend="give one of key, user, team and tier")
    scope, name = said[0]
    match scope:
        case "key":
            return "key", directory.key(key_id(name)).id
        case "user":
            return "user", directory.user(name).id
        case "team":
            return "team", _named("team", name, {team.name: team.id for team in directory.teams()})
        case _:
            return "tier", _named("tier", name, {tier.name: tier.name.encode() for tier in directory.tiers()})


class Subjects:
    """What limits are set on, by name, and the order that they are listed in."""

    def __init__(self, directory: Directory) -> None:
        """Read the names there are."""
        self._names: dict[LimitScope, dict[bytes, str]] = {
            "user": {user.id: user.name for user in directory.users()},
            "team": {team.id: team.name for team in directory.teams()},
        }

    def name(self, scope: LimitScope, subject: bytes) -> str:
        """Return what a subject is called; a key by its id."""
        if scope == "tier":
            return subject.decode()
        if scope == "key":
            return key_text(subject)
        return self._names[scope].get(subject, subject.hex())

    def order(self, limit: StoredLimit) -> tuple[int, str, str, str]:
        """Return where a limit stands in a list: those of many before those of few."""
        return (
            _SCOPES.index(limit.scope),
            self.name(limit.scope, limit.subject),
            limit.model,
            f"{limit.unit} {limit.window}",
        )


def _named(kind: str, name: str, known: Mapping[str, bytes]) -> bytes:
    if name not in known:
        raise NotFoundError(f"there is no {kind} {name!r}", mend=f"there are: {', '.join(known) or 'none'}")
    return known[name]


def need_known(models: Sequence[str], known: Sequence[str]) -> None:
    """Raise NotFoundError where a model is none of those that are known; the nearest names are the mend."""
    for model in models:
        if model not in known:
            near = get_close_matches(model, known, n=3, cutoff=0.5)
            raise NotFoundError(
                f"no endpoint serves the model {model[:80]!r}",
                mend=f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"there are: {', '.join(known) or 'none'}",
            )


def whole(amount: float, unit: Unit) -> int:
    """Return an amount in the unit it is counted in. Raises InputError for a part of a request or token."""
    counted = amount * COST_UNIT if unit == "cost" else amount
    if not 0 <= counted <= _AMOUNT_MOST:
        raise InputError(f"{amount} {unit} is out of range", mend="give 0 or more")
    if unit != "cost" and counted != int(counted):
        raise InputError(f"{amount} {unit} is not whole", mend="give a whole number")
    return round(counted)


def plain(amount: int, unit: Unit) -> float:
    """Return a counted amount as people write it."""
    return amount / COST_UNIT if unit == "cost" else amount

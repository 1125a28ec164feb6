"""The bodies, queries and answers of the admin routes. Instants are Unix seconds."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tokenweir.core.quota import Unit, Window
from tokenweir.ports.access import Permission

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128, pattern="^[^\\x00-\\x1f\\x7f]*$")]
Label: TypeAlias = Annotated[str, Meta(max_length=128, pattern="^[^\\x00-\\x1f\\x7f]*$")]
"""As a name, and may be empty."""
TierName: TypeAlias = Annotated[str, Meta(max_length=64, pattern="^[^\\x00-\\x1f\\x7f]*$")]
"""The name of a tier or pool; may be empty."""
Model: TypeAlias = Annotated[str, Meta(max_length=512, pattern="^[^\\x00-\\x1f\\x7f]*$")]
"""The name of a model."""
Span: TypeAlias = Annotated[str, Meta(max_length=32)]
"""``90d``, ``12h``, ``30m``."""


class NewUser(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user, in a team by its name; ``tier`` where it is not the team's."""

    name: Name
    team: Label = ""
    tier: TierName = ""


class UserChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A disabled user's keys are all refused."""

    disabled: bool


class UserAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A user; ``team`` is the name of its team, "" for none."""

    id: str
    name: str
    team: str
    tier: str
    created_at: int
    disabled: bool
    object: Literal["user"] = "user"


class UserList(msgspec.Struct, frozen=True, kw_only=True):
    """All users by name."""

    data: list[UserAnswer]
    object: Literal["list"] = "list"


class NewTeam(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A team; ``tier`` is that of its members."""

    name: Name
    tier: TierName = ""


class TeamAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A team."""

    id: str
    name: str
    tier: str
    created_at: int
    object: Literal["team"] = "team"


class TeamList(msgspec.Struct, frozen=True, kw_only=True):
    """All teams by name."""

    data: list[TeamAnswer]
    object: Literal["list"] = "list"


class TierBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well somebody is served: ``priority``, higher first, and a pool of endpoints of one's own."""

    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    pool: TierName = ""


class TierAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A tier."""

    name: str
    priority: int
    pool: str
    object: Literal["tier"] = "tier"


class TierList(msgspec.Struct, frozen=True, kw_only=True):
    """All tiers by name."""

    data: list[TierAnswer]
    object: Literal["list"] = "list"


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key for a user; without ``models`` it may ask all, without ``expires`` (as ``90d``) it does not end."""

    user: Name
    name: Label = ""
    scopes: Annotated[tuple[Permission, ...], Meta(min_length=1)] = ("infer", "read")
    models: Annotated[tuple[Model, ...], Meta(max_length=256)] = ()
    expires: Span | None = None


class KeyQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose keys: those of one user, or all."""

    user: Name | None = None


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the old key still works, as ``24h``."""

    overlap: Span = "0s"


class KeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a key. ``models`` is empty where it may ask all."""

    id: str
    user: str
    name: str
    scopes: list[Permission]
    models: list[str]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    state: Literal["valid", "expired", "revoked"]
    object: Literal["key"] = "key"


class MadeKey(KeyAnswer, frozen=True, kw_only=True):
    """A key that was just made: ``secret`` is what its holder sends. It is not kept, and cannot be shown again."""

    secret: str


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """Keys, oldest first."""

    data: list[KeyAnswer]
    object: Literal["list"] = "list"


class WhoseOrAll(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose limits: at most one of them is given, by name; a key by its id. Without one, those of all."""

    key: Name | None = None
    user: Name | None = None
    team: Name | None = None
    tier: Name | None = None


class Whose(WhoseOrAll, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose limit: exactly one of them is given, by name; a key by its id."""


class LimitKind(Whose, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit but for its amount: of ``unit`` in each ``per``; for one ``model``, or for all."""

    unit: Unit
    per: Window
    model: Model = ""


class LimitBody(LimitKind, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit. Cost is in the currency of the prices."""

    amount: Annotated[float, Meta(ge=0)]


class LimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A limit; ``used`` is what counts against it in the window that ends at ``resets_at``.

    Both are ``null`` for a tier's, which is each of its users' own.
    """

    scope: Literal["key", "user", "team", "tier"]
    name: str
    unit: Unit
    per: Window
    model: str
    amount: float
    used: float | None = None
    resets_at: int | None = None
    object: Literal["limit"] = "limit"


class LimitList(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a key, user, team or tier."""

    data: list[LimitAnswer]
    object: Literal["list"] = "list"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Whether counters are what ledger and open reservations add up to; a line for each that is not."""

    agree: bool
    differences: list[str]


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """How many counters were counted anew."""

    counters: int


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which use, and what a row adds up. ``since`` is a day, ``until`` the day after the last one."""

    by: Literal["day", "month", "request"] = "day"
    user: Name | None = None
    team: Name | None = None
    key: Name | None = None
    model: Model | None = None
    since: Span | None = None
    until: Span | None = None


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one key used of one model in the day or month that begins at ``day``; ``cost`` in the currency.

    ``estimated`` of the requests were not counted by the endpoint.
    """

    day: str
    user: str
    team: str
    key: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float
    estimated: int


class UsageList(msgspec.Struct, frozen=True, kw_only=True):
    """Use, oldest first."""

    data: list[UsageRow]
    object: Literal["list"] = "list"

"""What the OpenAPI document says of the admin routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tokenweir.gateway.doors import admin_schemas as said
from tokenweir.gateway.doors.describing import Content, Description, Query


def _fields(kind: type[msgspec.Struct]) -> tuple[Query, ...]:
    """Return the fields of a query that is read as a struct."""
    (_,), components = msgspec.json.schema_components([kind])
    schema: dict[str, Any] = components[kind.__name__]
    needed = schema.get("required", ())
    return tuple(
        Query(name, _stated(field), "", needed=name in needed) for name, field in schema["properties"].items()
    )


def _stated(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a field's schema for a query, where nothing can be ``null``."""
    choices = [each for each in field.get("anyOf", ()) if each.get("type") != "null"]
    return choices[0] if choices else {key: value for key, value in field.items() if key != "default"}


ADMIN: Final[Mapping[str, Description]] = {
    "GET /v1/admin/users": Description(
        summary="List users by name", scope="admin", answers={200: (said.UserList,)}
    ),
    "POST /v1/admin/users": Description(
        summary="Add a user",
        scope="admin",
        body=said.NewUser,
        answers={201: (said.UserAnswer,)},
        refuses=(404,),
    ),
    "GET /v1/admin/users/{id}": Description(
        summary="Describe a user, by name", scope="admin", answers={200: (said.UserAnswer,)}
    ),
    "PATCH /v1/admin/users/{id}": Description(
        summary="Refuse, or accept again, all keys of a user",
        scope="admin",
        body=said.UserChange,
        answers={200: (said.UserAnswer,)},
    ),
    "GET /v1/admin/teams": Description(
        summary="List teams by name", scope="admin", answers={200: (said.TeamList,)}
    ),
    "POST /v1/admin/teams": Description(
        summary="Add a team",
        scope="admin",
        body=said.NewTeam,
        answers={201: (said.TeamAnswer,)},
        refuses=(404,),
    ),
    "GET /v1/admin/tiers": Description(
        summary="List tiers by name", scope="admin", answers={200: (said.TierList,)}
    ),
    "PUT /v1/admin/tiers/{id}": Description(
        summary="Make a tier, or change it",
        scope="admin",
        body=said.TierBody,
        answers={200: (said.TierAnswer,)},
    ),
    "GET /v1/admin/keys": Description(
        summary="List keys, oldest first",
        scope="admin",
        query=_fields(said.KeyQuery),
        answers={200: (said.KeyList,)},
        refuses=(404,),
    ),
    "POST /v1/admin/keys": Description(
        summary="Make a key; its secret is told this once",
        scope="admin",
        body=said.NewKey,
        answers={201: (said.MadeKey,)},
        refuses=(404,),
    ),
    "GET /v1/admin/keys/{id}": Description(
        summary="Describe a key", scope="admin", answers={200: (said.KeyAnswer,)}
    ),
    "DELETE /v1/admin/keys/{id}": Description(
        summary="Refuse a key from now on", scope="admin", answers={200: (said.KeyAnswer,)}
    ),
    "POST /v1/admin/keys/{id}/rotate": Description(
        summary="Make a key like another, and refuse the old one",
        scope="admin",
        body=said.Rotation,
        answers={201: (said.MadeKey,)},
    ),
    "GET /v1/admin/quotas": Description(
        summary="List the limits of a key, user, team or tier, or of all, and what counts against them",
        scope="admin",
        query=_fields(said.WhoseOrAll),
        answers={200: (said.LimitList,)},
        refuses=(404,),
    ),
    "PUT /v1/admin/quotas": Description(
        summary="Set a limit, or change it",
        scope="admin",
        body=said.LimitBody,
        answers={200: (said.LimitAnswer,)},
        refuses=(404,),
    ),
    "DELETE /v1/admin/quotas": Description(
        summary="Remove a limit",
        scope="admin",
        query=_fields(said.LimitKind),
        answers={204: ()},
        refuses=(404,),
    ),
    "GET /v1/admin/quotas/verify": Description(
        summary="Prove that every counter is what ledger and open reservations add up to",
        scope="admin",
        answers={200: (said.Proof,)},
    ),
    "POST /v1/admin/quotas/rebuild": Description(
        summary="Count everything anew", scope="admin", answers={200: (said.Counted,)}
    ),
    "GET /v1/admin/usage": Description(
        summary="Tell what was used: by day or month, as JSON or CSV, or the ledger itself as CSV",
        scope="admin",
        query=_fields(said.UsageQuery),
        answers={200: (said.UsageList, Content.CSV)},
        refuses=(404,),
    ),
}
"""A row for each method and path."""

"""The tables of access, as the newest revision in ``migrations`` makes them. Ids are 16 bytes, times Unix ns."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

BRANCH: Final = "access"
SCRIPTS: Final = "tokenweir.access:migrations"

METADATA: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)
_ID: Final = sa.LargeBinary(16)

TIERS: Final = sa.Table(
    "access_tiers",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("pool", sa.String(64), nullable=False),
)

TEAMS: Final = sa.Table(
    "access_teams",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("tier", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

USERS: Final = sa.Table(
    "access_users",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("team", _ID, nullable=False),
    sa.Column("tier", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("disabled_at", sa.BigInteger),
)

KEYS: Final = sa.Table(
    "access_keys",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("user", _ID, nullable=False, index=True),
    sa.Column("name", sa.String(128), nullable=False),
    # SHA-256 of the whole key: 160 random bits need no slow hash.
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("scopes", sa.String(64), nullable=False),
    # JSON list; [] allows every model.
    sa.Column("models", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
)

LIMITS: Final = sa.Table(
    "access_limits",
    METADATA,
    # A key, user or team by its id, or a tier by its name: whoever has the tier gets the limit of its own.
    sa.Column("scope", sa.String(8), primary_key=True),
    sa.Column("subject", sa.LargeBinary(64), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.String(8), primary_key=True),
    sa.Column("window", sa.String(8), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

REVISION: Final = sa.Table(
    "access_revision",
    METADATA,
    sa.Column("one", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

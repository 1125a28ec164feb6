"""The gateway's tables, as the newest revision in ``migrations`` makes them. Ids are 16 bytes, times Unix ns."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

BRANCH: Final = "gateway"
SCRIPTS: Final = "tokenweir.stores.gateway:migrations"

METADATA: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)
_ID: Final = sa.LargeBinary(16)

REQUESTS: Final = sa.Table(
    "gateway_requests",
    METADATA,
    sa.Column("request", _ID, primary_key=True),
    sa.Column("key_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("team_id", _ID, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("lane", sa.SmallInteger, nullable=False),
    sa.Column("route", sa.String(16), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("body_hash", sa.LargeBinary(32), nullable=False),
    # Null where the caller gave none: any number of requests may have none.
    sa.Column("idempotency", sa.Text),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("deadline_at", sa.BigInteger),
    sa.Column("webhook", sa.Text, nullable=False),
    # What follows changes while the request is worked on.
    sa.Column("published", sa.Boolean, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.BigInteger, nullable=False),
    sa.Column("cancel_at", sa.BigInteger),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("log", sa.LargeBinary, nullable=False),
    sa.Column("first_offset", sa.BigInteger),
    sa.UniqueConstraint("user_id", "idempotency"),
)
sa.Index("ix_gateway_requests_user", REQUESTS.c.user_id, REQUESTS.c.request)
# Ended requests are by far the most; upkeep looks at the open ones alone.
sa.Index(
    "ix_gateway_requests_open",
    REQUESTS.c.lease_until,
    sqlite_where=REQUESTS.c.ended_at.is_(None),
    postgresql_where=REQUESTS.c.ended_at.is_(None),
)

RESERVATIONS: Final = sa.Table(
    "gateway_reservations",
    METADATA,
    sa.Column("request", _ID, primary_key=True),
    sa.Column("key_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("team_id", _ID, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    # The limits it counts against, as MessagePack: they may change while it is open.
    sa.Column("limits", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
)
sa.Index("ix_gateway_reservations_expires_at", RESERVATIONS.c.expires_at)

LEDGER: Final = sa.Table(
    "gateway_ledger",
    METADATA,
    sa.Column("request", _ID, primary_key=True),
    sa.Column("key_id", _ID, nullable=False),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("team_id", _ID, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("settled_at", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(8), nullable=False),
    sa.Column("source", sa.String(12), nullable=False),
    sa.Column("ending", sa.String(12), nullable=False),
)
sa.Index("ix_gateway_ledger_at", LEDGER.c.at)
sa.Index("ix_gateway_ledger_key", LEDGER.c.key_id, LEDGER.c.at)
sa.Index("ix_gateway_ledger_user", LEDGER.c.user_id, LEDGER.c.at)
sa.Index("ix_gateway_ledger_team", LEDGER.c.team_id, LEDGER.c.at)

JOBS: Final = sa.Table(
    "gateway_jobs",
    METADATA,
    sa.Column("request", _ID, primary_key=True),
    sa.Column("lane", sa.SmallInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("queued_at", sa.BigInteger, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("dead", sa.Boolean, nullable=False),
    sa.Column("errors", sa.LargeBinary, nullable=False),
)

EVENTS: Final = sa.Table(
    "gateway_events",
    METADATA,
    sa.Column("request", _ID, primary_key=True),
    sa.Column("first_seq", sa.BigInteger, primary_key=True),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("events", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# One row: the number of times that counters outside of this database were counted anew.
EPOCH: Final = sa.Table(
    "gateway_epoch",
    METADATA,
    sa.Column("one", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

FILES: Final = sa.Table(
    "gateway_files",
    METADATA,
    sa.Column("file", _ID, primary_key=True),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    # Null where the caller gave none, and until the file is whole.
    sa.Column("idempotency", sa.Text),
    sa.Column("kept", sa.Boolean, nullable=False),
    sa.UniqueConstraint("user_id", "idempotency"),
)
sa.Index("ix_gateway_files_user", FILES.c.user_id, FILES.c.file)

FILE_PIECES: Final = sa.Table(
    "gateway_file_pieces",
    METADATA,
    sa.Column("file", _ID, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

BATCHES: Final = sa.Table(
    "gateway_batches",
    METADATA,
    sa.Column("batch", _ID, primary_key=True),
    sa.Column("user_id", _ID, nullable=False),
    sa.Column("key_id", _ID, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Column("idempotency", sa.Text),
    sa.Column("cancel_at", sa.BigInteger),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("worker", _ID),
    sa.Column("lease_until", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("user_id", "idempotency"),
)
sa.Index("ix_gateway_batches_user", BATCHES.c.user_id, BATCHES.c.batch)
sa.Index(
    "ix_gateway_batches_open",
    BATCHES.c.lease_until,
    sqlite_where=BATCHES.c.ended_at.is_(None),
    postgresql_where=BATCHES.c.ended_at.is_(None),
)

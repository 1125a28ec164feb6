"""The tables of the index of runs, as the newest revision in ``migrations`` makes them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

BRANCH: Final = "studio"
SCRIPTS: Final = "tokenweir.studio:migrations"

METADATA: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

RUNS: Final = sa.Table(
    "runs",
    METADATA,
    # As text, since it is looked up by its beginning; ordered by time, as a UUIDv7 is.
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("backend", sa.String(32), nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger, nullable=False),
    sa.Column("attributed", sa.Boolean, nullable=False),
    sa.Column("trust", sa.String(16)),
    sa.Column("load_points", sa.Integer, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("config_hash", sa.String(64), nullable=False),
    sa.Column("workload_hash", sa.String(64), nullable=False),
    sa.Column("measurement_hash", sa.String(64), nullable=False),
    sa.Column("corpus_hash", sa.String(64), nullable=False),
    sa.Index("ix_runs_started_at", "started_at"),
    sa.Index("ix_runs_model", "model"),
    sa.Index("ix_runs_workload_hash", "workload_hash"),
)
"""One row per run directory. ``trust`` is null for a run that ended before its first load point."""

LABELS: Final = sa.Table(
    "run_labels",
    METADATA,
    sa.Column("run", sa.String(64), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
"""The labels of runs, none of which is part of any hash."""

"""The index of runs and their labels."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "studio0001"
down_revision = None
branch_labels = ("studio",)
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), nullable=False),
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
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_started_at", "runs", ["started_at"])
    op.create_index("ix_runs_model", "runs", ["model"])
    op.create_index("ix_runs_workload_hash", "runs", ["workload_hash"])
    op.create_table(
        "run_labels",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run", "key", name="pk_run_labels"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_run_labels_runs", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("run_labels")
    op.drop_table("runs")

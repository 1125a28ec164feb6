"""Accepted requests, reservations, the ledger, jobs and events."""

from __future__ import annotations

from alembic import op

from tokenweir.stores.gateway.schema import METADATA

revision = "gateway0001"
down_revision = None
branch_labels = ("gateway",)
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    METADATA.create_all(op.get_bind())


def downgrade() -> None:
    """Drop the tables."""
    METADATA.drop_all(op.get_bind())

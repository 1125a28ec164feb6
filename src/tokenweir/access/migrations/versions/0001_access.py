"""Teams, users, keys, tiers, limits, and the revision by which caches learn of a change."""

from __future__ import annotations

from alembic import op

from tokenweir.access.schema import METADATA, REVISION

revision = "access0001"
down_revision = None
branch_labels = ("access",)
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    METADATA.create_all(op.get_bind())
    op.bulk_insert(REVISION, [{"one": 1, "revision": 0}])


def downgrade() -> None:
    """Drop the tables."""
    METADATA.drop_all(op.get_bind())

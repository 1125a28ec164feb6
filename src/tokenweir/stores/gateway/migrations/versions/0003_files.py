"""Files that callers send and get, and batches of requests."""

from __future__ import annotations

from alembic import op

from tokenweir.stores.gateway.schema import BATCHES, FILE_PIECES, FILES

revision = "gateway0003"
down_revision = "gateway0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    for table in (FILES, FILE_PIECES, BATCHES):
        table.create(op.get_bind(), checkfirst=True)


def downgrade() -> None:
    """Drop the tables."""
    for table in (BATCHES, FILE_PIECES, FILES):
        table.drop(op.get_bind())

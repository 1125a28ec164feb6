"""The epoch of the quota counters: what is accepted under one that has passed is refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tokenweir.stores.gateway.schema import EPOCH

revision = "gateway0002"
down_revision = "gateway0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and its one row."""
    connection = op.get_bind()
    EPOCH.create(connection, checkfirst=True)
    if connection.execute(sa.select(EPOCH.c.one)).first() is None:
        connection.execute(EPOCH.insert().values(one=1, epoch=0))


def downgrade() -> None:
    """Drop the table."""
    EPOCH.drop(op.get_bind())

"""Run by Alembic: applies the revisions on the connection that ``tokenweir.stores.migrate`` hands over."""

from __future__ import annotations

from typing import cast

import sqlalchemy as sa
from alembic import context

from tokenweir.access.schema import BRANCH, METADATA
from tokenweir.stores.migrate import CONNECTION, version_table

context.configure(
    connection=cast("sa.Connection", context.config.attributes[CONNECTION]),
    target_metadata=METADATA,
    version_table=version_table(BRANCH),
    render_as_batch=True,
    # The caller has begun the transaction, under the write lock.
    transactional_ddl=False,
)
context.run_migrations()

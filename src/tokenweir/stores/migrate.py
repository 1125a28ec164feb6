"""Schemas are made by Alembic migrations alone, one branch per owner, when a store is opened."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from tokenweir.core.errors import RecordError
from tokenweir.stores.records import reading, writing

CONNECTION: Final = "connection"
"""The attribute of Alembic's configuration in which a branch's ``env.py`` finds its connection."""


def version_table(branch: str) -> str:
    """Return the table that holds a branch's revision; each owner has its own and upgrades alone."""
    return f"alembic_{branch}"


def upgrade(engine: sa.Engine, *, scripts: str, branch: str) -> None:
    """Bring a branch's tables to their newest revision; do nothing when they are there.

    ``scripts`` is an Alembic location such as ``package:folder``. Check and change are one transaction under
    the store's write lock, so any number of processes may open a store at once.

    Raises:
        RecordError: the store was made by a newer Tokenweir, or cannot be opened or changed.
    """
    config = Config()
    config.set_main_option("script_location", scripts)
    head = ScriptDirectory.from_config(config).get_current_head()
    try:
        with reading(engine) as connection:
            if _revision(connection, branch) == head:
                return
        with writing(engine) as connection:
            if _revision(connection, branch) == head:
                return
            config.attributes[CONNECTION] = connection
            command.upgrade(config, f"{branch}@head")
    except CommandError as error:
        name = engine.url.render_as_string(hide_password=True)
        raise RecordError(
            f"the database {name!r} has a schema this Tokenweir does not know: {error}",
            mend="use the Tokenweir that wrote it, or another file",
        ) from error


def _revision(connection: sa.Connection, branch: str) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": version_table(branch)})
    return context.get_current_revision()

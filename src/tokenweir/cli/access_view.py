"""What the commands about users, keys and limits share: their databases, and times as people read them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from tokenweir.access.directory import Directory
from tokenweir.access.wording import need_known
from tokenweir.app import Settings
from tokenweir.cli.start import start
from tokenweir.core.errors import NotFoundError
from tokenweir.runtime.shipped import shipped_model
from tokenweir.stores.records import absent_file


@contextmanager
def directory(*, existing: bool = False) -> Generator[Directory]:
    """Give the directory that the settings name; made where it is not there, unless an ``existing`` one is wanted.

    Only what begins something, as the first user, makes it: to make it for what needs more than that would hide that
    the wrong folder is named.

    Raises:
        NotFoundError: an existing one is wanted, and there is none.
    """
    url = start().stores.access
    if existing:
        need_database(url)
    opened = Directory(url)
    try:
        yield opened
    finally:
        opened.close()


def need_database(url: str) -> None:
    """Refuse a file that is not there.

    Raises:
        NotFoundError: there is no such SQLite file.
    """
    path = absent_file(url)
    if path is not None:
        raise NotFoundError(
            f"there is no database {path.name!r} in {str(path.parent)!r}",
            mend="weir up makes it, or name the folder that holds it with WEIR_HOME or [stores]",
        )


def need_models(settings: Settings, models: Sequence[str], done: str) -> None:
    """Refuse models that no endpoint of the settings has; warn where the settings name no endpoint.

    Without endpoints ``weir up`` serves a model of this machine, and which it is shows only when it runs; then what is
    ``done`` all the same is said.

    Raises:
        NotFoundError: no endpoint has one of them; the nearest is named.
    """
    known = sorted({endpoint.model for endpoint in settings.endpoints if endpoint.model is not None})
    if known:
        need_known(models, known)
        return
    shipped = shipped_model()
    local = ["sim"] if shipped is None else ["sim", shipped.name]
    for model in models:
        if model not in local:
            click.echo(
                f"no endpoint is configured, and weir up serves {' or '.join(reversed(local))} then: {done}, and "
                f"nothing answers as {model!r} yet",
                err=True,
            )


def moment(at: int | None) -> str:
    """Return an instant as UTC, to the minute; a dash for none."""
    if at is None:
        return "–"
    return datetime.fromtimestamp(at / 1e9, UTC).strftime("%Y-%m-%d %H:%M")

"""Which run directories a command's arguments name."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenweir.bench.records.rundir import RUN_FILE
from tokenweir.cli.start import start
from tokenweir.core.errors import NotFoundError, RecordError

if TYPE_CHECKING:
    from tokenweir.studio.index import Entry, RunIndex


def locate(names: Sequence[str]) -> list[Path]:
    """Return the directory of each run.

    A name is a path, the name of a directory below the runs directory, a run's id or the beginning of one.

    Raises:
        NotFoundError: a name is neither a directory's nor the beginning of an id.
        RecordError: an id is ambiguous, or its directory is gone.
    """
    below = start().stores.runs
    found = {name: path for name in names if (path := _directory(name, below)) is not None}
    missing = [name for name in names if name not in found]
    if missing:
        with open_index() as index:
            for name in missing:
                entry = _indexed(index, name, below)
                if not entry.present:
                    raise RecordError(
                        f"the directory of {entry.run_id} is gone: {str(entry.path)!r}",
                        mend="weir runs index forgets it, or finds it again: weir runs index DIR",
                    )
                found[name] = entry.path
    return [found[name] for name in names]


@contextmanager
def open_index() -> Generator[RunIndex]:
    """Open the index of the settings, with what is new in the runs directory."""
    settings = start()
    # The database library is slow to load, and not needed for runs named by their paths.
    index = import_module("tokenweir.studio.index")
    opened: RunIndex
    with index.RunIndex(settings.stores.records) as opened:
        if settings.stores.runs.is_dir():
            for error in opened.add_new(settings.stores.runs):
                click.echo(f"weir: left out: {error}", err=True)
        yield opened


def _indexed(index: RunIndex, name: str, below: Path) -> Entry:
    try:
        return index.get(name)
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no directory {name!r}, here or in {str(below)!r}, and {error.message}", mend=error.mend
        ) from None


def _directory(name: str, below: Path) -> Path | None:
    path = Path(name)
    if "/" in name or path.exists():
        return path.parent if path.name == RUN_FILE else path
    return below / name if (below / name / RUN_FILE).exists() else None

"""``weir runs``: the runs that were recorded, and their numbers for people and programs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

import click
import msgspec

from tokenweir.bench.records.rundir import read_run
from tokenweir.bench.report import render, wording
from tokenweir.bench.report.export import Format, write_requests, write_summaries
from tokenweir.cli.locate import locate, open_index
from tokenweir.cli.run_view import echo_run
from tokenweir.cli.start import start
from tokenweir.cli.tables import Column, echo_table
from tokenweir.core.errors import InputError
from tokenweir.studio.index import Entry, Query, RunIndex

_DAY_NS: Final = 86_400 * 1_000_000_000
_AGES: Final = {"m": _DAY_NS // 1440, "h": _DAY_NS // 24, "d": _DAY_NS, "w": 7 * _DAY_NS}
_COLUMNS: Final = (
    Column("run", fixed=True),
    Column("started, UTC", fixed=True),
    Column("model"),
    Column("backend"),
    Column("loads", number=True),
    Column("requests", number=True),
    Column("status", fixed=True),
    Column("verdict"),
    Column("labels"),
)


@click.group(name="runs")
def command() -> None:
    """List, show and export recorded runs.

    RUN is a run's id, the beginning of one, or a run directory.
    """


@command.command(name="list")
@click.option("--model", help="Only runs of this model.")
@click.option("--backend", help="Only runs against this kind of backend.")
@click.option(
    "--label", "labels", multiple=True, metavar="K=V", help="Only runs so labelled. May be given again."
)
@click.option(
    "--status", type=click.Choice(["completed", "cancelled", "failed"]), help="Only runs that ended so."
)
@click.option("--since", metavar="AGE|DATE", help="Only runs started since: 30m, 12h, 7d, 2w or 2026-01-31.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(
    *,
    model: str | None,
    backend: str | None,
    labels: tuple[str, ...],
    status: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the runs that are indexed, newest first.

    New runs in the runs directory (the setting stores.runs) are indexed on the way.
    """
    query = Query(
        model=model,
        backend=backend,
        status=status,
        since=None if since is None else parse_since(since, now=time.time_ns()),
        labels=dict(_label(text) for text in labels),
        limit=limit,
    )
    with open_index() as index:
        found = index.search(query)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([_as_json(entry) for entry in found])).decode())
    elif found:
        echo_table(_COLUMNS, [_row(entry) for entry in found])
    else:
        click.echo("No runs.", err=True)


@command.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the run's run.json.")
def show(*, run: str, as_json: bool) -> None:
    """Show a run: whom it belongs to, its metrics with n, the client's conduct, and definitions."""
    record = read_run(locate([run])[0])
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(record)).decode())
    else:
        echo_run(record)


@command.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "csv"]),
    default="json",
    show_default=True,
    help="What to write.",
)
@click.option("--requests", is_flag=True, help="A row per request (JSON: a line each), not one per metric.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write to a file."
)
def export(*, runs: tuple[str, ...], form: Format, requests: bool, out: Path | None) -> None:
    """Write the numbers of runs as JSON or CSV, to standard output unless --out is given."""
    found = locate(runs)
    with _destination(out) as sink:
        (write_requests if requests else write_summaries)(found, form, sink)


@command.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def index(*, directory: Path | None, as_json: bool) -> None:
    """Make the index anew from the run.json files below DIRECTORY, by default the runs directory.

    Runs whose directories are gone are forgotten. Directories whose run.json cannot be read are named, and
    make the command exit with 2 after the others are indexed.
    """
    settings = start()
    with RunIndex(settings.stores.records) as opened:
        done = opened.rebuild(directory or settings.stores.runs)
    if as_json:
        refused = [str(error) for error in done.refused]
        result = {"indexed": done.indexed, "forgotten": done.forgotten, "refused": refused}
        click.echo(msgspec.json.format(msgspec.json.encode(result)).decode())
    else:
        click.echo(f"{len(done.indexed)} runs indexed, {len(done.forgotten)} forgotten.")
    if done.refused:
        for error in done.refused[:-1]:
            click.echo(f"weir: {error}", err=True)
        raise done.refused[-1]


@command.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
def report(*, runs: tuple[str, ...]) -> None:
    """Write report.html of runs again, and print where it is."""
    for run_dir in locate(runs):
        click.echo(render(run_dir))


def parse_since(text: str, *, now: int) -> int:
    """Return the Unix ns that an age (``7d``) before ``now`` or a date in UTC stands for.

    Raises:
        InputError: it is neither.
    """
    age = re.fullmatch(r"(\d+)\s*([mhdw])", text.strip())
    if age:
        return now - int(age[1]) * _AGES[age[2]]
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise InputError(
            f"--since {text!r} is neither an age nor a date", mend="write 12h, 7d or 2026-01-31"
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000_000


@contextmanager
def _destination(out: Path | None) -> Generator[BinaryIO]:
    """Open what an export is written to; a file appears whole or not at all."""
    if out is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    draft = out.with_name(f".{out.name}.part")
    try:
        with draft.open("wb") as sink:
            yield sink
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--label {text!r} is no label", mend="write --label KEY=VALUE")
    return key, value


def _row(entry: Entry) -> list[str]:
    return [
        entry.run_id,
        wording.instant(entry.started_at)[:16],
        entry.model,
        entry.backend,
        wording.whole(entry.load_points),
        wording.whole(entry.requests),
        entry.status if entry.present else "gone",
        (entry.trust or wording.UNKNOWN) + ("" if entry.attributed else f", {wording.UNATTRIBUTED}"),
        ",".join(f"{key}={value}" for key, value in entry.labels.items()) or wording.UNKNOWN,
    ]


def _as_json(entry: Entry) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
    return {**fields, "path": str(entry.path), "present": entry.present}

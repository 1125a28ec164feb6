"""The index of runs: a list to search, made from the ``run.json`` of each, and made anew when lost."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import sqlalchemy as sa

from tokenweir.bench.records.model import Run, RunStatus, Trust
from tokenweir.bench.records.rundir import RUN_FILE, read_run
from tokenweir.core.errors import InputError, NotFoundError, RecordError
from tokenweir.stores.migrate import upgrade
from tokenweir.stores.records import reading, records_engine, writing
from tokenweir.studio.index_schema import BRANCH, LABELS, RUNS, SCRIPTS

_PREFIX: Final = "run_"
_NEAR: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the index knows of one run. Instants are Unix ns; ``trust`` is ``None`` without a load point."""

    run_id: str
    path: Path
    status: RunStatus
    model: str
    backend: str
    started_at: int
    ended_at: int
    attributed: bool
    trust: Trust | None
    load_points: int
    requests: int
    config_hash: str
    workload_hash: str
    measurement_hash: str
    corpus_hash: str
    labels: Mapping[str, str]

    @property
    def present(self) -> bool:
        """Whether the run's directory is still there."""
        return (self.path / RUN_FILE).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which runs to list; what is not given does not matter. ``since`` is Unix ns; all ``labels`` agree."""

    model: str | None = None
    backend: str | None = None
    status: str | None = None
    since: int | None = None
    workload_hash: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What :meth:`RunIndex.rebuild` did: ids indexed, ids forgotten, directories that hold no run."""

    indexed: tuple[str, ...]
    forgotten: tuple[str, ...]
    refused: tuple[RecordError, ...]


class RunIndex:
    """The index in a records store. Opening it makes or upgrades its tables; use it as a context manager."""

    def __init__(self, url: str) -> None:
        """Open the index at a records URL.

        Raises:
            ConfigError: the URL cannot be used.
            RecordError: the store is damaged or was made by a newer Tokenweir.
        """
        self._engine = records_engine(url)
        try:
            upgrade(self._engine, scripts=SCRIPTS, branch=BRANCH)
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the store's connections."""
        self._engine.dispose()

    def add(self, run_dir: Path) -> Entry:
        """Index the run in ``run_dir``, in place of what was known under its id.

        Raises:
            RecordError: the directory holds no finished run.
        """
        entry = entry_of(read_run(run_dir), run_dir)
        self._put([entry])
        return entry

    def add_new(self, runs_dir: Path) -> tuple[RecordError, ...]:
        """Index the directories of ``runs_dir`` that are not known yet; return those that hold no run."""
        with reading(self._engine) as connection:
            known = set(connection.scalars(sa.select(RUNS.c.path)))
        found, refused = _read_all(path for path in run_dirs(runs_dir) if str(path) not in known)
        self._put(found)
        return refused

    def rebuild(self, runs_dir: Path) -> Rebuilt:
        """Index every run below ``runs_dir`` anew and forget the indexed runs whose directories are gone."""
        found, refused = _read_all(run_dirs(runs_dir))
        self._put(found)
        gone = [entry.run_id for entry in self.search() if not entry.present]
        for run_id in gone:
            self.remove(run_id)
        return Rebuilt(indexed=tuple(entry.run_id for entry in found), forgotten=tuple(gone), refused=refused)

    def search(self, query: Query | None = None) -> list[Entry]:
        """Return the runs that ``query`` asks for, newest first."""
        query = query or Query()
        wanted = sa.select(RUNS).order_by(RUNS.c.started_at.desc(), RUNS.c.id.desc()).limit(query.limit)
        for column, value in (
            (RUNS.c.model, query.model),
            (RUNS.c.backend, query.backend),
            (RUNS.c.status, query.status),
            (RUNS.c.workload_hash, query.workload_hash),
        ):
            if value is not None:
                wanted = wanted.where(column == value)
        if query.since is not None:
            wanted = wanted.where(RUNS.c.started_at >= query.since)
        for key, value in query.labels.items():
            labelled = sa.select(LABELS.c.run).where(LABELS.c.key == key, LABELS.c.value == value)
            wanted = wanted.where(RUNS.c.id.in_(labelled))
        return self._entries(wanted)

    def get(self, run_id: str) -> Entry:
        """Return the run with this id, or the only one whose id begins so, with or without ``run_``.

        Raises:
            NotFoundError: no run begins so; the message names near ones.
            RecordError: several do; the message names them.
        """
        beginning = _canonical(run_id)
        wanted = sa.select(RUNS).where(RUNS.c.id.startswith(beginning, autoescape=True))
        found = self._entries(wanted.order_by(RUNS.c.id))
        exact = [entry for entry in found if entry.run_id == beginning]
        if len(found) == 1 or exact:
            return (exact or found)[0]
        if found:
            names = ", ".join(entry.run_id for entry in found[:_NEAR])
            raise RecordError(
                f"{len(found)} runs begin with {run_id!r}", mend=f"give more of the id: {names}"
            )
        with reading(self._engine) as connection:
            known = list(connection.scalars(sa.select(RUNS.c.id).order_by(RUNS.c.id.desc())))
        near = difflib.get_close_matches(beginning, known, n=_NEAR, cutoff=0.5) or known[:_NEAR]
        mend = f"known ones: {', '.join(near)}" if near else "index a directory of runs: weir runs index DIR"
        raise NotFoundError(f"no run {run_id!r} is indexed", mend=mend)

    def remove(self, run_id: str) -> None:
        """Forget a run; its directory stays. An id that is not indexed is forgotten already."""
        with writing(self._engine) as connection:
            connection.execute(sa.delete(LABELS).where(LABELS.c.run == run_id))
            connection.execute(sa.delete(RUNS).where(RUNS.c.id == run_id))

    def _put(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        if not entries:
            return
        with writing(self._engine) as connection:
            for entry in entries:
                # A directory holds one run: whatever was known of this path or id is out of date.
                stale = sa.or_(RUNS.c.id == entry.run_id, RUNS.c.path == str(entry.path))
                known = sa.select(RUNS.c.id).where(stale)
                connection.execute(sa.delete(LABELS).where(LABELS.c.run.in_(known)))
                connection.execute(sa.delete(RUNS).where(stale))
                connection.execute(sa.insert(RUNS).values(_row(entry)))
                labels = [
                    {"run": entry.run_id, "key": key, "value": value} for key, value in entry.labels.items()
                ]
                if labels:
                    connection.execute(sa.insert(LABELS), labels)

    def _entries(self, wanted: sa.Select[tuple[object, ...]]) -> list[Entry]:
        with reading(self._engine) as connection:
            rows = connection.execute(wanted).mappings().all()
            labels: dict[str, dict[str, str]] = {}
            chosen = sa.select(wanted.subquery().c.id)
            for run, key, value in connection.execute(sa.select(LABELS).where(LABELS.c.run.in_(chosen))):
                labels.setdefault(run, {})[key] = value
        return [
            Entry(
                run_id=row["id"],
                path=Path(row["path"]),
                labels=dict(sorted(labels.get(row["id"], {}).items())),
                **{name: row[name] for name in _SAME},
            )
            for row in rows
        ]


_SAME: Final = (
    "status",
    "model",
    "backend",
    "started_at",
    "ended_at",
    "attributed",
    "trust",
    "load_points",
    "requests",
    "config_hash",
    "workload_hash",
    "measurement_hash",
    "corpus_hash",
)
"""What entry and row have under the same name."""


def entry_of(run: Run, run_dir: Path) -> Entry:
    """Return what the index keeps of a run."""
    verdicts = {load.summary.verdict.trust for load in run.loads}
    trust: Trust | None = None
    if verdicts:
        trust = "client-bound" if "client-bound" in verdicts else "trusted"
    who = run.provenance
    return Entry(
        run_id=run.run_id,
        path=run_dir.resolve(),
        status=run.status,
        model=who.model,
        backend=who.backend,
        started_at=run.started_at,
        ended_at=run.ended_at,
        attributed=who.attributed,
        trust=trust,
        load_points=len(run.loads),
        requests=sum(load.summary.counts.sent for load in run.loads),
        config_hash=who.config_hash,
        workload_hash=who.workload_hash,
        measurement_hash=who.measurement_hash,
        corpus_hash=who.corpus_hash,
        labels=dict(run.labels),
    )


def run_dirs(runs_dir: Path) -> list[Path]:
    """Return the directories of finished runs: ``runs_dir`` itself, and those up to two levels below it.

    Raises:
        InputError: there is no such directory.
    """
    if not runs_dir.is_dir():
        raise InputError(f"{str(runs_dir)!r} is no directory", mend="name the directory that holds the runs")
    found = [
        path.parent
        for pattern in ("", "*/", "*/*/")
        for path in sorted(runs_dir.glob(f"{pattern}{RUN_FILE}"))
    ]
    return [path.resolve() for path in found]


def _read_all(paths: Iterable[Path]) -> tuple[list[Entry], tuple[RecordError, ...]]:
    found: list[Entry] = []
    refused: list[RecordError] = []
    for path in paths:
        try:
            found.append(entry_of(read_run(path), path))
        except RecordError as error:
            refused.append(error)
    return found, tuple(refused)


def _row(entry: Entry) -> dict[str, object]:
    return {"id": entry.run_id, "path": str(entry.path), **{name: getattr(entry, name) for name in _SAME}}


def _canonical(text: str) -> str:
    return _PREFIX + text.strip().removeprefix(_PREFIX).upper()

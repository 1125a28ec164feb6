from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from tests.factories.runs import RunShape, make_run

from tokenweir.core.errors import InputError, NotFoundError, RecordError
from tokenweir.stores.migrate import upgrade, version_table
from tokenweir.stores.records import records_engine
from tokenweir.studio.index import Query, RunIndex
from tokenweir.studio.index_schema import BRANCH, METADATA, SCRIPTS

IDS = ("run_01K9AAAAAAAAAAAAAAAAAAAAAA", "run_01K9AAAAAAAAAAAAAAAAAAAAAB", "run_01K9BBBBBBBBBBBBBBBBBBBBBB")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for place, run_id in enumerate(IDS):
        shape = RunShape(
            run_id=run_id,
            labels={"gpu": "L40S", "turn": str(place)},
            started_at=(1 + place) * 10**18,
            attributed=place != 1,
            client_bound=place == 2,
            status="cancelled" if place == 2 else "completed",
        )
        make_run(tmp_path / "runs" / run_id, n=20, shape=shape)
    return tmp_path / "runs"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[RunIndex]:
    with RunIndex(f"sqlite:///{tmp_path}/index.db") as opened:
        yield opened


def test_is_made_from_the_records_alone(index: RunIndex, runs: Path, tmp_path: Path) -> None:
    assert sorted(index.rebuild(runs).indexed) == sorted(IDS)
    first = index.search()
    assert [entry.run_id for entry in first] == list(reversed(IDS))
    assert [entry.attributed for entry in first] == [True, False, True]
    assert [entry.trust for entry in first] == ["client-bound", "trusted", "trusted"]
    assert dict(first[0].labels) == {"gpu": "L40S", "turn": "2"}

    with RunIndex(f"sqlite:///{tmp_path}/other.db") as other:
        other.rebuild(runs)
        assert other.search() == first


@pytest.mark.parametrize(
    ("query", "places"),
    [
        (Query(model="m"), [2, 1, 0]),
        (Query(model="other"), []),
        (Query(backend="sim", status="completed"), [1, 0]),
        (Query(labels={"gpu": "L40S", "turn": "1"}), [1]),
        (Query(labels={"gpu": "1"}), []),
        (Query(since=2 * 10**18), [2, 1]),
        (Query(limit=1), [2]),
    ],
)
def test_lists_what_is_asked_for(index: RunIndex, runs: Path, query: Query, places: list[int]) -> None:
    index.add_new(runs)
    assert [entry.run_id for entry in index.search(query)] == [IDS[place] for place in places]


def test_finds_by_id_or_the_beginning_of_one(index: RunIndex, runs: Path) -> None:
    index.add_new(runs)
    for text in (IDS[2], "run_01K9B", "01k9b", "01K9B"):
        assert index.get(text).run_id == IDS[2]
    with pytest.raises(RecordError, match=f"2 runs begin.*{IDS[0]}, {IDS[1]}"):
        index.get("01K9A")
    with pytest.raises(NotFoundError, match=f"no run.*{IDS[0]}"):
        index.get(IDS[0][:-1] + "C")
    with pytest.raises(NotFoundError, match="no run"):
        index.get("%")


def test_adding_again_renews_and_a_replaced_directory_forgets_the_old_run(
    index: RunIndex, runs: Path
) -> None:
    index.add_new(runs)
    where = runs / IDS[0]
    shutil.rmtree(where)
    make_run(where, n=20, shape=RunShape(run_id=IDS[0][:-1] + "Z", labels={"gpu": "H100"}))
    index.add(where)
    assert IDS[0] not in [entry.run_id for entry in index.search()]
    assert [entry.path for entry in index.search(Query(labels={"gpu": "H100"}))] == [where.resolve()]
    assert len(index.search()) == 3


def test_a_lost_directory_is_said_and_forgotten_on_rebuilding(index: RunIndex, runs: Path) -> None:
    index.add_new(runs)
    shutil.rmtree(runs / IDS[1])
    assert not index.get(IDS[1]).present
    assert index.rebuild(runs).forgotten == (IDS[1],)
    assert len(index.search()) == 2
    index.remove(IDS[1])


def test_damaged_records_are_named_and_the_others_indexed(index: RunIndex, runs: Path) -> None:
    (runs / IDS[0] / "run.json").write_text('{"run_id": 3}')
    (refused,) = index.rebuild(runs).refused
    assert IDS[0] in str(refused)
    assert len(index.search()) == 2
    with pytest.raises(InputError, match="no directory"):
        index.rebuild(runs / "nowhere")


def test_the_migrations_make_what_the_code_expects(tmp_path: Path) -> None:
    engine = records_engine(f"sqlite:///{tmp_path}/index.db")
    try:
        for _ in range(2):
            upgrade(engine, scripts=SCRIPTS, branch=BRANCH)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": version_table(BRANCH), "compare_type": True}
            )
            assert compare_metadata(context, METADATA) == []
        assert set(sa.inspect(engine).get_table_names()) == {"runs", "run_labels", version_table(BRANCH)}
    finally:
        engine.dispose()


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE run_labels (mine TEXT)")
    database.close()
    with pytest.raises(RecordError, match="already exists"):
        RunIndex(f"sqlite:///{path}")
    with sqlite3.connect(path) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    database.close()
    assert names == {"run_labels"}


def test_a_store_of_a_newer_version_or_of_something_else_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/index.db"
    RunIndex(url).close()
    with sqlite3.connect(tmp_path / "index.db") as database:
        database.execute("UPDATE alembic_studio SET version_num = 'studio9999'")
    database.close()
    with pytest.raises(RecordError, match="does not know"):
        RunIndex(url)
    (tmp_path / "text.db").write_text("this is no database, and it is longer than a page header " * 40)
    with pytest.raises(RecordError, match="cannot be used"):
        RunIndex(f"sqlite:///{tmp_path}/text.db")


def test_many_processes_may_open_a_new_index_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tokenweir.studio.index import RunIndex; "
        "sys.stdin.read(); opened = RunIndex(sys.argv[1]); opened.add(Path(sys.argv[2])); opened.close()"
    )
    url = f"sqlite:///{tmp_path}/index.db"
    processes: list[subprocess.Popen[bytes]] = []
    for place in range(6):
        make_run(tmp_path / str(place), seed=place, n=20)
        command = [sys.executable, "-W", "error", "-c", script, url, str(tmp_path / str(place))]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE))
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        assert process.wait() == 0, said
    with RunIndex(url) as index:
        assert len(index.search()) == 6

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import sqlalchemy as sa

from tokenweir.core.errors import ConfigError, DiskFullError, MissingExtraError, RecordError
from tokenweir.stores.records import reading, records_engine, writing


def test_sqlite_is_set_up_to_be_shared(tmp_path: Path) -> None:
    engine = records_engine(f"sqlite:///{tmp_path}/deep/er/index.db")
    try:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
    finally:
        engine.dispose()


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    engine = records_engine(f"sqlite:///{tmp_path}/index.db")
    try:
        with writing(engine) as connection:
            connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
            connection.exec_driver_sql("INSERT INTO t VALUES (0)")

        def count_up(_: int) -> None:
            with writing(engine) as connection:
                value = connection.exec_driver_sql("SELECT n FROM t").scalar()
                connection.execute(sa.text("UPDATE t SET n = :n"), {"n": int(value or 0) + 1})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(count_up, range(40)))
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT n FROM t").scalar() == 40
    finally:
        engine.dispose()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    engine = records_engine(f"sqlite:///{tmp_path}/index.db")
    try:

        def fail() -> None:
            with writing(engine) as connection:
                connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert sa.inspect(engine).get_table_names() == []
    finally:
        engine.dispose()


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite", "", "nonsense://"])
def test_an_unknown_scheme_names_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        records_engine(url)


@pytest.mark.skipif(find_spec("psycopg") is not None, reason="the driver is installed")
def test_postgresql_without_its_driver_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match="psycopg"):
        records_engine("postgresql://user:secret@host/db")


@pytest.mark.skipif(find_spec("psycopg") is None, reason="needs the extra 'postgresql'")
def test_a_database_that_is_away_is_named_without_guessing_whose_it_is() -> None:
    engine = records_engine("postgresql://weir:s3cret@127.0.0.1:1/weir")
    try:
        with pytest.raises(RecordError, match=r"cannot be used: .*refused") as caught, reading(engine):
            pass
        assert str(caught.value).startswith("the database 'postgresql")
        assert str(caught.value).endswith("can be reached and written, or name another under [stores]")
        assert "s3cret" not in str(caught.value)
    finally:
        engine.dispose()


def test_a_store_that_cannot_be_used_says_so_in_one_line(tmp_path: Path) -> None:
    engine = records_engine(f"sqlite:///{tmp_path}/index.db")
    try:
        with pytest.raises(RecordError, match="cannot be used: no such table"), writing(engine) as connection:
            connection.exec_driver_sql("SELECT * FROM nowhere")
        with writing(engine) as connection:
            connection.exec_driver_sql("CREATE TABLE t (b BLOB)")
            connection.exec_driver_sql("PRAGMA max_page_count = 4")
        with pytest.raises(DiskFullError, match="no room"), writing(engine) as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(1000000))")
    finally:
        engine.dispose()

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from tokenweir.access.directory import Directory
from tokenweir.access.wording import lifetime, plain, subject, whole
from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import InputError, NotFoundError, UnavailableError
from tokenweir.gateway.administration import Administration
from tokenweir.ports.access import Caller
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota

ADMIN = Caller(key=bytes(16), user=bytes(16), team=b"", scopes=frozenset({"admin"}))


def test_a_directory_that_cannot_be_used_is_not_the_callers_fault(tmp_path: Path) -> None:
    changes: list[str] = []

    async def changed() -> None:
        changes.append("seen")

    async def run() -> None:
        database, clock = Database(f"sqlite:///{tmp_path / 'gateway.db'}"), SystemClock()
        quota = SqliteQuota(database, clock)
        directory = Directory(f"sqlite:///{tmp_path / 'access.db'}")
        admin = Administration(directory, ledger=SqliteLedger(database, quota), quota=quota, changed=changed)
        await admin.change(ADMIN, "ada added", lambda opened: opened.add_user("ada"))
        assert changes == ["seen"]
        with pytest.raises(InputError, match="already"):
            await admin.change(ADMIN, "ada added", lambda opened: opened.add_user("ada"))
        with sqlite3.connect(tmp_path / "access.db") as connection:
            connection.execute("DROP TABLE access_teams")
        connection.close()
        with pytest.raises(UnavailableError, match="cannot be used"):
            await admin.change(ADMIN, "team added", lambda opened: opened.add_team("x"))
        assert changes == ["seen"]
        directory.close()
        database.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "ns"),
    [("90d", 90 * 86_400 * 10**9), ("1.5h", 5400 * 10**9), ("0s", 0), ("36500d", 36_500 * 86_400 * 10**9)],
)
def test_a_lifetime_is_read(text: str, ns: int) -> None:
    assert lifetime(text) == ns


@pytest.mark.parametrize("text", ["", "d", "90", "36501d", "٣d", "9999999999999d", "999999999h", "-1d"])
def test_what_is_no_lifetime_is_told(text: str) -> None:
    with pytest.raises(InputError):
        lifetime(text)


def test_amounts_are_counted_whole() -> None:
    assert (whole(2.5, "cost"), plain(2_500_000, "cost"), whole(3.0, "tokens")) == (2_500_000, 2.5, 3)
    for amount in (-1.0, 0.5, float("nan"), float("inf"), 1e30):
        with pytest.raises(InputError):
            whole(amount, "requests")


def test_a_limit_is_of_one_that_there_is(tmp_path: Path) -> None:
    directory = Directory(f"sqlite:///{tmp_path / 'access.db'}")
    user = directory.add_user("ada")
    key, _ = directory.issue("ada", "")
    assert subject(directory, {"user": "ada", "key": None}) == ("user", user.id)
    for given in ({}, {"user": "ada", "tier": "gold"}):
        with pytest.raises(InputError, match="one of them"):
            subject(directory, given)
    for scope, name in (
        ("user", "eve"),
        ("team", "t"),
        ("tier", "t"),
        ("key", "key_01M7ZNYTNGE3NB7S5GARYF16GB"),
    ):
        with pytest.raises(NotFoundError, match="there is no"):
            subject(directory, {scope: name})
    assert key.user == user.id
    directory.close()

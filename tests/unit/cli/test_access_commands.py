from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenweir.access.directory import Directory
from tokenweir.cli import main
from tokenweir.core.clock import SystemClock
from tokenweir.core.ids import format_id, uuid7
from tokenweir.ports.ledger import Charge, LedgerRow
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota

Weir = Callable[..., tuple[int, str, str]]
REQUEST = format_id("req", uuid7(1_700_000_000_000_000_000, 1))
ENDPOINT = """
[[endpoints]]
name = "one"
kind = "sim"
url = "http://127.0.0.1:9"
model = "llama-70b"
"""


@pytest.fixture
def weir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command over stores of its own; return its status, what it told and what it said beside."""
    config = tmp_path / "weir.toml"
    stores = "\n".join(f'{name} = "sqlite:///{tmp_path / name}.db"' for name in ("access", "gateway"))
    config.write_text(f"[stores]\n{stores}\n", encoding="utf-8")

    def run(*words: str, more: str = "") -> tuple[int, str, str]:
        config.write_text(f"{more}\n[stores]\n{stores}\n", encoding="utf-8")
        status = main.run(["--config", str(config), *words])
        out, said = capsys.readouterr()
        return status, out, said

    return run


def use(tmp_path: Path, *rows: LedgerRow) -> None:
    async def settle() -> None:
        with contextlib.closing(Database(f"sqlite:///{tmp_path / 'gateway'}.db")) as database:
            ledger = SqliteLedger(database, SqliteQuota(database, SystemClock()))
            await ledger.settle([Charge(row=row) for row in rows])

    asyncio.run(settle())


def test_every_change_says_what_now_holds(weir: Weir) -> None:
    told = [
        (
            ("users", "set-tier", "gold", "--priority", "8", "--pool", "fast"),
            "tier gold has priority 8 and uses",
        ),
        (("users", "add-team", "research", "--tier", "gold"), "team research of tier gold added"),
        (("users", "add", "ada", "--team", "research"), "user ada added"),
        (("users", "disable", "ada"), "user ada is disabled: its keys are refused"),
        (("users", "enable", "ada"), "user ada is enabled: its keys are accepted"),
        (
            ("quotas", "set", "100_000", "tokens", "--per", "day", "--user", "ada"),
            "user ada may use 100,000 tokens per day",
        ),
        (
            ("quotas", "set", "2.5", "cost", "--per", "month", "--team", "research", "--model", "sim"),
            "team research may use 2.50 USD per month of sim",
        ),
        (
            ("quotas", "remove", "tokens", "--per", "day", "--user", "ada"),
            "user ada has no limit on tokens per day any more",
        ),
    ]
    for words, said in told:
        status, out, line = weir(*words)
        assert (status, out) == (0, "")
        assert line.startswith(said)
        assert line.count("\n") == 1


def test_limits_and_use_of_all_are_listed(weir: Weir, tmp_path: Path) -> None:
    for name in ("ada", "bob", "eve"):
        weir("users", "add", name)
    weir("quotas", "set", "100", "tokens", "--per", "month", "--user", "ada")
    weir("quotas", "set", "3", "requests", "--per", "month", "--user", "ada", "--model", "sim")
    directory = Directory(f"sqlite:///{tmp_path / 'access'}.db")
    users = {user.name: user.id for user in directory.users()}
    directory.close()

    def row(number: int, user: str, model: str) -> LedgerRow:
        now = time.time_ns()
        return LedgerRow(
            request=number.to_bytes(16, "big"),
            key=bytes(16),
            user=users[user],
            team=b"",
            model=model,
            endpoint="one",
            at=now,
            settled_at=now,
            input_tokens=4,
            output_tokens=6,
        )

    use(tmp_path, row(1, "ada", "sim"), row(2, "ada", "other"), row(3, "bob", "sim"))
    status, out, _ = weir("quotas", "list")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert lines[1:] == [
        ["user", "ada", "all", "tokens", "month", "100", "20"],
        ["user", "ada", "sim", "requests", "month", "3", "1"],
        ["user", "bob", "all", "tokens", "month", "–", "10"],
    ]
    _, out, _ = weir("quotas", "list", "--user", "ada")
    assert [line.split() for line in out.splitlines()] == lines[:3]
    assert weir("quotas", "list", "--user", "eve")[1:] == ("", "No limits.\n")


@pytest.mark.parametrize(
    "words",
    ["users add ada", "users add-team research", "users set-tier gold"],
)
def test_what_begins_something_makes_the_database(weir: Weir, tmp_path: Path, words: str) -> None:
    assert weir(*words.split())[0] == 0
    assert (tmp_path / "access.db").exists()


@pytest.mark.parametrize(("what", "method"), [("verify", "GET"), ("rebuild", "POST")])
def test_counters_that_a_gateway_holds_are_asked_of_it(
    weir: Weir, tmp_path: Path, what: str, method: str
) -> None:
    with contextlib.closing(Database(f"sqlite:///{tmp_path / 'gateway'}.db")):
        status, _, said = weir("quotas", what)
        assert weir("queue", "dead", "list") == (0, "", "No dead letters.\n")
    assert status == 2
    assert said.startswith("weir: a running gateway has the counters")
    assert f"{method} /v1/admin/quotas/{what}" in said
    assert weir("quotas", what)[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        "usage",
        "usage --by request",
        "keys list",
        "users list",
        "quotas list",
        "quotas verify",
        "queue status",
        "queue dead list",
        "keys create ada",
        "keys revoke key_00000000000000000000000000",
        "keys rotate key_00000000000000000000000000",
        "users add ada --team research",
        "users add ada --tier gold",
        "users add-team research --tier gold",
        "users disable ada",
        "users enable ada",
        "quotas set 5 tokens --per day --user ada",
        "quotas remove tokens --per day --user ada",
        "quotas rebuild",
        f"queue dead replay {REQUEST}",
        f"queue dead drop {REQUEST}",
        "queue rotate",
    ],
)
def test_what_needs_something_that_is_there_makes_no_database(weir: Weir, tmp_path: Path, words: str) -> None:
    before = set(tmp_path.iterdir())
    status, out, said = weir(*words.split())
    assert (status, out, said.count("\n")) == (2, "", 1)
    of_gateway = words.startswith("queue ") or words in {"quotas verify", "quotas rebuild"}
    assert f"there is no database '{'gateway' if of_gateway else 'access'}.db'" in said
    assert f"in {str(tmp_path)!r}" in said
    assert "weir up makes it, or name the folder that holds it with WEIR_HOME" in said
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "weir.toml"}


def test_users_may_be_added_before_a_gateway_has_run(weir: Weir, tmp_path: Path) -> None:
    assert weir("users", "add", "ada")[0] == 0
    assert weir("quotas", "set", "5", "tokens", "--per", "day", "--user", "ada")[0] == 0
    assert weir("usage")[1:] == ("", "Nothing was used.\n")
    assert len(weir("usage", "--by", "request")[1].splitlines()) == 1
    assert weir("quotas", "list")[1].splitlines()[1].split()[-2:] == ["5", "0"]
    assert not (tmp_path / "gateway.db").exists()


def test_a_key_is_for_models_that_there_are(weir: Weir) -> None:
    weir("users", "add", "ada")
    status, out, said = weir("keys", "create", "ada", "--model", "lama-70b", more=ENDPOINT)
    assert (status, out) == (2, "")
    assert said == "weir: no endpoint serves the model 'lama-70b'; did you mean 'llama-70b'?\n"
    _, _, said = weir(
        "quotas", "set", "1", "tokens", "--per", "day", "--user", "ada", "--model", "x", more=ENDPOINT
    )
    assert said == "weir: no endpoint serves the model 'x'; there are: llama-70b\n"
    assert weir("keys", "list")[2] == "No keys.\n"
    assert weir("keys", "create", "ada", "--model", "llama-70b", more=ENDPOINT)[0] == 0
    # Without endpoints the model shows only when the gateway runs.
    status, out, said = weir("keys", "create", "ada", "--model", "nomodel")
    assert (status, out[:5]) == (0, "weir_")
    assert "nothing answers as 'nomodel' yet" in said.splitlines()[0]
    assert len(weir("keys", "create", "ada", "--model", "sim")[2].splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quotas", "set", "many", "tokens", "--per", "day", "--user", "ada"), "'many' is no number"),
        (("quotas", "set", "--", "-1", "tokens"), "'-1' is no amount; write 0 or more"),
        (
            ("quotas", "set", "-50", "tokens", "--per", "day", "--user", "ada"),
            "an amount cannot be negative, as '-50' is; write 0 or more",
        ),
        (("quotas", "set", "--user", "-5", "-.5", "cost"), "an amount cannot be negative, as '-.5' is"),
        (("quotas", "set", "5", "-x", "tokens"), "no such option '-x'"),
        (("keys", "create", "ada", "--expires", "5"), "write a number and a unit, such as 5d, 12h or 30m"),
        (("keys", "create", "ada", "--expires", "soon"), "such as 5d"),
    ],
)
def test_what_cannot_be_read_is_told_with_what_to_write(
    weir: Weir, words: tuple[str, ...], said: str
) -> None:
    weir("users", "add", "ada")
    status, _, complaint = weir(*words)
    assert status == 2
    assert said in complaint
    assert "float" not in complaint
    assert complaint.count("\n") == 1

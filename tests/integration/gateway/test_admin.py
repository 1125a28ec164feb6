from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import pytest
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import ASK, User, waiting

from tokenweir.sim.process import SimProcess

PRICES = """
[gateway]
currency = "EUR"
[[gateway.prices]]
model = "sim"
input = 1.0
output = 2.0
"""


@pytest.fixture(scope="module")
def door() -> Iterator[GatewayProcess]:
    with (
        SimProcess(ttft="constant:1ms", itl="constant:1ms") as sim,
        gateway(PRICES + endpoint("one", sim.url)) as process,
    ):
        yield process


class Admin:
    """Who holds the first key."""

    def __init__(self, door: GatewayProcess) -> None:
        self._user = User(door.url, door.key)

    def ask(self, method: str, path: str, body: object = None, *, status: int = 200, **headers: str) -> Any:  # noqa: ANN401 - tests look into it
        """Ask for what must be answered so; return the body."""
        answer = self._user.ask(method, f"/v1/admin/{path}", body, **headers)
        assert answer.status == status, answer.body
        return (
            answer.json()
            if answer.body and b"csv" not in answer.headers["content-type"].encode()
            else answer.body
        )

    def refused(self, method: str, path: str, body: object = None, *, status: int) -> tuple[str | None, str]:
        """Ask for what is refused; return the parameter at fault and what is said."""
        error = self.ask(method, path, body, status=status)["error"]
        assert error["mend"] or status == 404
        return error["param"], error["message"]


@pytest.fixture
def admin(door: GatewayProcess) -> Admin:
    return Admin(door)


def asks(door: GatewayProcess, key: str) -> int:
    """Return what a key gets that asks the model."""
    body = {"model": "sim", "messages": ASK, "max_tokens": 4}
    return User(door.url, key).ask("POST", "/v1/chat/completions", body).status


def test_a_user_is_added_disabled_and_enabled(admin: Admin, door: GatewayProcess) -> None:
    admin.ask("PUT", "tiers/gold", {"priority": 8, "pool": "fast"})
    team = admin.ask("POST", "teams", {"name": "research", "tier": "gold"}, status=201)
    assert team["id"].startswith("team_")
    made = admin.ask("POST", "users", {"name": "ada", "team": "research"}, status=201)
    assert (made["team"], made["disabled"], made["object"]) == ("research", False, "user")
    assert admin.ask("GET", "users/ada") == made
    assert made in admin.ask("GET", "users")["data"]
    assert team in admin.ask("GET", "teams")["data"]
    assert {"name": "gold", "priority": 8, "pool": "fast", "object": "tier"} in admin.ask("GET", "tiers")[
        "data"
    ]
    key = admin.ask("POST", "keys", {"user": "ada"}, status=201)["secret"]
    assert asks(door, key) == 200
    assert admin.ask("PATCH", "users/ada", {"disabled": True})["disabled"] is True
    # Whoever is told so need not wait for it.
    assert asks(door, key) == 401
    admin.ask("PATCH", "users/ada", {"disabled": False})
    assert asks(door, key) == 200


def test_a_key_is_made_rotated_and_revoked(admin: Admin, door: GatewayProcess) -> None:
    admin.ask("POST", "users", {"name": "grace"}, status=201)
    wanted = {"user": "grace", "name": "laptop", "scopes": ["infer"], "models": ["sim"], "expires": "90d"}
    made = admin.ask("POST", "keys", wanted, status=201)
    secret = made.pop("secret")
    assert made["expires_at"] - made["created_at"] == 90 * 86_400
    assert (made["state"], made["scopes"], made["models"]) == ("valid", ["infer"], ["sim"])
    assert admin.ask("GET", f"keys/{made['id']}") == made
    assert admin.ask("GET", "keys?user=grace")["data"] == [made]
    assert made in admin.ask("GET", "keys")["data"]
    assert secret not in str(admin.ask("GET", "keys"))
    admin.ask("PUT", "quotas", {"key": made["id"], "unit": "requests", "per": "day", "amount": 50})
    other = admin.ask("POST", f"keys/{made['id']}/rotate", {"overlap": "1h"}, status=201)
    assert (asks(door, secret), asks(door, other["secret"])) == (200, 200)
    assert admin.ask("GET", f"quotas?key={other['id']}")["data"][0]["amount"] == 50
    assert admin.ask("DELETE", f"keys/{made['id']}")["state"] == "revoked"
    assert (asks(door, secret), asks(door, other["secret"])) == (401, 200)
    assert door.weir("keys", "list", "--user", "grace").stdout.count("revoked") == 1
    rotated = admin.ask("POST", f"keys/{other['id']}/rotate", status=201)
    assert "'sim2'" in admin.refused("POST", "keys", {"user": "grace", "models": ["sim2"]}, status=404)[1]
    assert asks(door, other["secret"]) == 401
    assert asks(door, rotated["secret"]) == 200


def test_limits_are_set_hold_and_are_proved(admin: Admin, door: GatewayProcess) -> None:
    admin.ask("POST", "users", {"name": "alan"}, status=201)
    secret = admin.ask("POST", "keys", {"user": "alan"}, status=201)["secret"]
    limit = admin.ask("PUT", "quotas", {"user": "alan", "unit": "requests", "per": "day", "amount": 2})
    assert (limit["used"], limit["amount"], limit["scope"], limit["name"]) == (0, 2, "user", "alan")
    admin.ask(
        "PUT", "quotas", {"user": "alan", "unit": "cost", "per": "month", "amount": 2.5, "model": "sim"}
    )
    for_none = {"user": "alan", "unit": "cost", "per": "month", "amount": 2.5, "model": "sim2"}
    assert "no endpoint serves" in admin.refused("PUT", "quotas", for_none, status=404)[1]
    assert [asks(door, secret) for _ in range(3)] == [200, 200, 429]
    found = {each["unit"]: each for each in admin.ask("GET", "quotas?user=alan")["data"]}
    assert found["requests"]["used"] == 2
    assert found["requests"]["resets_at"] > 0
    assert 0 < found["cost"]["used"] < found["cost"]["amount"] == 2.5
    assert admin.ask("GET", "quotas/verify") == {"agree": True, "differences": []}
    assert admin.ask("POST", "quotas/rebuild")["counters"] > 0
    assert admin.ask("GET", "quotas?user=alan")["data"][0]["used"] is not None
    assert asks(door, secret) == 429
    admin.ask("DELETE", "quotas?user=alan&unit=requests&per=day", status=204)
    assert asks(door, secret) == 200
    admin.refused("DELETE", "quotas?user=alan&unit=requests&per=day", status=404)
    admin.ask("PUT", "tiers/free", {})
    free = admin.ask("PUT", "quotas", {"tier": "free", "unit": "tokens", "per": "day", "amount": 1000})
    assert free["used"] is None


def test_limits_of_all_are_listed_each_with_its_own_use(door: GatewayProcess) -> None:
    admin = Admin(door)
    nine = {"unit": "requests", "per": "month", "amount": 9}
    admin.ask("POST", "teams", {"name": "crowd"}, status=201)
    admin.ask("PUT", "tiers/crowded", {})
    keys: dict[str, str] = {}
    for name in ("zoe", "bea"):
        admin.ask("POST", "users", {"name": name, "team": "crowd"}, status=201)
        key = admin.ask("POST", "keys", {"user": name}, status=201)
        keys[name] = key["id"]
        admin.ask("PUT", "quotas", {"user": name, **nine})
        for _ in range(2 if name == "zoe" else 1):
            assert asks(door, key["secret"]) == 200
    for whose in ({"key": keys["zoe"]}, {"team": "crowd"}, {"tier": "crowded"}):
        admin.ask("PUT", "quotas", {**whose, **nine})
    found = [
        (each["scope"], each["name"], each["used"])
        for each in admin.ask("GET", "quotas")["data"]
        if (each["unit"], each["per"], each["amount"]) == ("requests", "month", 9)
    ]
    assert found == [
        ("tier", "crowded", None),
        ("team", "crowd", 3),
        ("user", "bea", 1),
        ("user", "zoe", 2),
        ("key", keys["zoe"], 2),
    ]
    assert admin.ask("GET", "quotas?user=bea")["data"] == [
        each for each in admin.ask("GET", "quotas")["data"] if each["name"] == "bea"
    ]


def test_use_is_told_as_json_and_as_csv(admin: Admin, door: GatewayProcess) -> None:
    admin.ask("POST", "teams", {"name": "billing"}, status=201)
    admin.ask("POST", "users", {"name": "edsger", "team": "billing"}, status=201)
    key = admin.ask("POST", "keys", {"user": "edsger"}, status=201)
    for _ in range(3):
        assert asks(door, key["secret"]) == 200

    def settled() -> dict[str, Any] | None:
        rows = admin.ask("GET", "usage?user=edsger")["data"]
        return rows[0] if rows and rows[0]["requests"] == 3 else None

    row = waiting(settled, "three rows of the ledger")
    assert (row["team"], row["key"], row["model"], row["output_tokens"]) == ("billing", key["id"], "sim", 12)
    assert row["cost"] == pytest.approx((row["input_tokens"] + 2 * row["output_tokens"]) / 1_000_000)
    assert admin.ask("GET", f"usage?by=month&team=billing&key={key['id']}")["data"][0]["requests"] == 3
    assert admin.ask("GET", "usage?user=edsger&until=2026-01-01")["data"] == []
    totals = admin.ask("GET", "usage?user=edsger", accept="text/csv").decode()
    assert totals.splitlines() == door.weir("usage", "--user", "edsger", "--csv").stdout.splitlines()
    ledger = list(csv.DictReader(io.StringIO(admin.ask("GET", "usage?by=request&user=edsger").decode())))
    assert [each["output_tokens"] for each in ledger] == ["4", "4", "4"]
    assert {each["currency"] for each in ledger} == {"EUR"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "users", {"name": ""}, 400, "name"),
        ("POST", "users", {}, 400, "body"),
        ("POST", "users", {"name": "x", "admin": True}, 400, "body"),
        ("POST", "users", {"name": "x", "team": "absent"}, 404, None),
        ("POST", "users", {"name": "admin"}, 400, None),
        ("POST", "users", b"{", 400, "body"),
        ("POST", "users", {"name": " x"}, 400, None),
        ("PATCH", "users/absent", {"disabled": True}, 404, None),
        ("PATCH", "users/admin", {"disabled": "yes"}, 400, "disabled"),
        ("GET", "users/absent", None, 404, None),
        ("POST", "teams", {"name": "t", "tier": "absent"}, 404, None),
        ("PUT", "tiers/t", {"priority": 10}, 400, "priority"),
        ("PUT", f"tiers/{'t' * 65}", {}, 400, None),
        ("PUT", "tiers/t", {"pool": "p" * 65}, 400, "pool"),
        ("POST", "keys", {"user": "admin", "name": "a\u0000b"}, 400, "name"),
        ("POST", "keys", {"user": "admin", "scopes": ["root"]}, 400, "scopes[0]"),
        ("POST", "keys", {"user": "admin", "expires": "soon"}, 400, None),
        ("POST", "keys", {"user": "admin", "expires": "99999999d"}, 400, None),
        ("POST", "keys", {"user": "absent"}, 404, None),
        ("GET", "keys/key_x", None, 404, None),
        ("DELETE", "keys/key_01M7ZNYTNGE3NB7S5GARYF16GB", None, 404, None),
        ("POST", "keys/key_01M7ZNYTNGE3NB7S5GARYF16GB/rotate", {}, 404, None),
        ("GET", "keys?user=absent", None, 404, None),
        ("GET", "keys?who=admin", None, 400, "who"),
        ("DELETE", "quotas?unit=tokens&per=day", None, 400, None),
        ("GET", "quotas?user=admin&tier=x", None, 400, None),
        ("PUT", "quotas", {"user": "admin", "unit": "tokens", "per": "day", "amount": 1.5}, 400, None),
        ("PUT", "quotas", {"user": "admin", "unit": "tokens", "per": "day", "amount": -1}, 400, "amount"),
        ("PUT", "quotas", {"user": "admin", "unit": "tokens", "per": "week", "amount": 1}, 400, "per"),
        ("PUT", "quotas", {"user": "admin", "unit": "cost", "per": "day", "amount": 1e300}, 400, None),
        ("GET", "usage?by=year", None, 400, "by"),
        ("GET", "usage?since=yesterday", None, 400, None),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    admin: Admin, method: str, path: str, body: object, status: int, param: str | None
) -> None:
    before = admin.ask("GET", "users")
    found, said = admin.refused(method, path, body, status=status)
    assert (found, bool(said)) == (param, True)
    assert admin.ask("GET", "users") == before


def test_names_with_odd_letters_are_found_again(admin: Admin) -> None:
    for name in ("a/b", "ä ö", "50%"):
        made = admin.ask("POST", "users", {"name": name}, status=201)
        path = name.encode().hex(" ").split()
        assert admin.ask("GET", "users/" + "".join(f"%{letter}" for letter in path)) == made

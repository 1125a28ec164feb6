from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import User

from tokenweir.access.directory import Directory
from tokenweir.gateway.doors.descriptions import ALIASES, DESCRIPTIONS
from tokenweir.gateway.doors.openapi import described
from tokenweir.gateway.doors.routes import ROUTES, documented
from tokenweir.sim.process import SimProcess

EXAMPLES = 8
# An internal error is documented nowhere: it fails the first of them.
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SETTINGS = """
[worker]
attempts = 1
[gateway]
max_body_bytes = 100_000
"""


@pytest.fixture(scope="module")
def door() -> Iterator[GatewayProcess]:
    with (
        SimProcess(ttft="constant:1ms", itl="constant:1ms", default_tokens=4) as sim,
        SimProcess(model="broken", faults=("503@every=1",)) as broken,
        gateway(SETTINGS + endpoint("one", sim.url) + endpoint("two", broken.url, model="broken")) as process,
    ):
        yield process


class Api:
    """The gateway as its document describes it. ``ids`` are those of things that there are, by path."""

    def __init__(self, door: GatewayProcess) -> None:
        self.schema: Any = schemathesis.openapi.from_url(f"{door.url}/openapi.json")
        self.session = requests.Session()
        self.session.headers["authorization"] = f"Bearer {door.key}"
        user = User(door.url, door.key)
        request = user.submit(mode="stream", tokens=3)
        dead = user.submit(model="broken")
        user.until(request, "completed")
        user.until(dead, "failed")
        body = {"model": "sim", "input": "How many rivers?", "background": True, "max_output_tokens": 4}
        response = user.ask("POST", "/v1/responses", body).json()["id"]
        admin: list[tuple[str, dict[str, str]]] = [
            ("users", {"name": "subject"}),
            ("keys", {"user": "subject"}),
            ("tiers/subject", {}),
        ]
        made = [user.ask("PUT" if "/" in path else "POST", f"/v1/admin/{path}", body) for path, body in admin]
        line = {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "sim", "input": "x"},
        }
        file = self.session.post(
            f"{door.url}/v1/files",
            data={"purpose": "batch"},
            files={"file": ("lines.jsonl", json.dumps(line))},
            timeout=30,
        ).json()["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        batch = user.ask("POST", "/v1/batches", asked).json()["id"]
        self.ids = {
            "/v1/admin/users/{id}": "subject",
            "/v1/admin/tiers/{id}": "subject",
            **{path: made[1].json()["id"] for path in ROUTES if path.startswith("/v1/admin/keys/{id}")},
            **{path: file for path in ROUTES if path.startswith("/v1/files/{id}")},
            **{path: batch for path in ROUTES if path.startswith("/v1/batches/{id}")},
            "/v1/models/{id}": "sim",
            "/v1/queue/dead/{id}": dead,
            **{path: response for path in ROUTES if path.startswith("/v1/responses/{id}")},
            **{
                path: request
                for path in ROUTES
                if path.startswith(("/v1/requests/{id}", "/status", "/api/status", "/events"))
            },
        }

    def close(self) -> None:
        self.session.close()


class Case(Protocol):
    """What is used of schemathesis's generated request."""

    path_parameters: dict[str, Any]
    query: Any
    body: Any

    def call(self, *, session: requests.Session) -> object: ...

    def validate_response(self, response: object, checks: Sequence[object]) -> None: ...


class Keys(NamedTuple):
    """Keys with the usual scopes, and one that may only read."""

    plain: str
    reader: str


@pytest.fixture(scope="module")
def keys(door: GatewayProcess) -> Keys:
    directory = Directory(f"sqlite:///{door.home}/access.db")
    directory.add_user("plain")
    made = Keys(directory.issue("plain", "")[1], directory.issue("plain", "", scopes=["read"])[1])
    directory.close()
    return made


@pytest.fixture(scope="module")
def api(door: GatewayProcess) -> Iterator[Api]:
    made = Api(door)
    yield made
    made.close()


def modes() -> Iterator[tuple[str, GenerationMode]]:
    """Yield each route with what is right, and with what is wrong where something can be."""
    for route in documented():
        yield route, GenerationMode.POSITIVE
        row = DESCRIPTIONS[ALIASES.get(route, route)]
        if row.body or row.query or row.idempotent or row.resumes:
            yield route, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("route", "mode"), [pytest.param(*each, id=f"{each[0]} {each[1].value}") for each in modes()]
)
def test_whatever_is_sent_is_answered_as_documented(api: Api, route: str, mode: GenerationMode) -> None:
    method, _, path = route.partition(" ")
    cases = api.schema[path][method].as_strategy(generation_mode=mode)

    @given(
        case=cases,
        known=st.sampled_from(["", "known"]),
        model=st.sampled_from(["sim", "sim", "broken", None]),
    )
    @settings(
        max_examples=3 if route in ALIASES else EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        phases=[Phase.explicit, Phase.generate],
    )
    def run(case: Case, known: str, model: str | None) -> None:
        if known and path in api.ids:
            case.path_parameters["id"] = api.ids[path]
        if model is not None and case.body.__class__ is dict and "model" in case.body:
            case.body["model"] = model
        if known:
            for said in (case.body, case.query):
                if said.__class__ is dict and "user" in said:
                    said["user"] = "subject"
        case.validate_response(case.call(session=api.session), checks=CHECKS)

    run()


@pytest.mark.parametrize("route", documented())
def test_each_route_needs_the_key_that_is_documented(door: GatewayProcess, keys: Keys, route: str) -> None:
    scope = DESCRIPTIONS[ALIASES.get(route, route)].scope
    method, _, path = route.partition(" ")

    def status(key: str) -> int:
        user = User(door.url, key)
        return user.ask(method, path.replace("{id}", "none"), {} if method == "POST" else None).status

    if scope is None:
        assert status("") in {200, 503}
        return
    assert status("") == status(f"{door.key[:-1]}x") == 401
    assert status(keys.plain if scope == "admin" else keys.reader) == 403


def test_the_document_describes_each_route_and_no_other(door: GatewayProcess, api: Api) -> None:
    routes = set(documented())
    assert not routes - set(DESCRIPTIONS) - set(ALIASES), "give it a row in doors/descriptions.py"
    assert set(ALIASES.values()) <= set(DESCRIPTIONS)
    raw = cast("dict[str, Any]", described(documented()))
    found = {f"{method.upper()} {path}" for path, methods in raw["paths"].items() for method in methods}
    assert found == routes
    operations = [each for methods in raw["paths"].values() for each in methods.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
    assert api.schema.raw_schema == json.loads(json.dumps(raw))
    assert json.loads(door.weir("gateway", "--openapi").stdout) == api.schema.raw_schema

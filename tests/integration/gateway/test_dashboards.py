"""Dashboards, alerts and scaling: their PromQL against a real Prometheus that asks real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deploy.grafana import BOARDS, FOLDER, queries, render
from tests.factories.gateways import START_S, endpoint, gateway
from tests.factories.programs import program
from tests.factories.prometheus import DEPLOYED, Prometheus, prometheus
from tests.factories.queued import User, waiting
from tests.factories.sim_models import directory

from tokenweir.gateway.doors.batch_metrics import BatchMetrics
from tokenweir.gateway.doors.brownout_metrics import BrownoutMetrics
from tokenweir.gateway.doors.metrics import Metrics
from tokenweir.gateway.doors.queued_metrics import QueuedMetrics
from tokenweir.sim.process import SimProcess

ROOT = Path(__file__).parents[3]
KEDA = sorted((ROOT / "deploy" / "keda").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "tests" / "fixtures" / "keda" / "scaledobject.schema.json").read_text())
RULES = yaml.safe_load((DEPLOYED / "rules.yml").read_text(encoding="utf-8"))
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
# What has no series until it happens, and does not happen here.
RARE = (
    "weir_gateway_degraded_total",
    "weir_tls_refused_total",
    'kind="cached"',
    'source="estimated"',
    'level="error"',
    "> 0.8)",
    "WeirNoWorker",
)
CHAT = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


def objects() -> list[tuple[str, dict[str, Any]]]:
    return [(path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in KEDA]


def scaling() -> dict[str, str]:
    """Return the expressions that scale, by object and trigger."""
    return {
        f"{name} {trigger['name']}": trigger["metadata"]["query"]
        for name, made in objects()
        for trigger in made["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    }


def known() -> set[str]:
    """Return the names under which Prometheus knows what our processes tell."""
    gateway_metrics = Metrics()
    QueuedMetrics(gateway_metrics.registry)
    BrownoutMetrics(gateway_metrics.registry)
    BatchMetrics(gateway_metrics.registry)
    runtime = re.findall(
        r"^\| `(weir_runtime_\w+)`",
        (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    names = {*gateway_metrics.names(), *runtime}
    endings = ("", "_total", "_bucket", "_sum", "_count")
    return {"up", *(f"{name}{ending}" for name in names for ending in endings)}


def test_nothing_is_shown_or_watched_that_no_process_tells() -> None:
    everything = [*queries(), *(rule["expr"] for rule in ALERTS.values()), *scaling().values()]
    everything += [query for board in BOARDS for _, query in board.variables]
    names = known()
    for expression in everything:
        used = set(re.findall(r"\b(?:weir|process)_\w+", re.sub(r'"[^"]*"', '""', expression)))
        assert used or "up" in expression, expression
        assert used <= names, used - names


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_dashboards_are_as_they_are_written_down(board: Any) -> None:  # noqa: ANN401 - a board
    # To mend: python -m deploy.grafana.
    assert (FOLDER / f"{board.name}.json").read_text(encoding="utf-8") == render(board)
    made = json.loads(render(board))
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"]) >= 6
    assert all(panel["description"].endswith(".") for panel in made["panels"])
    used = set(re.findall(r"\$(\w+)", render(board))) - {"__all"}
    assert used == {name for name, _ in board.variables} or not board.variables


def test_every_alert_says_what_to_do() -> None:
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["mend"]
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in ALERTS)


def test_scaling_is_within_its_bounds() -> None:
    found = dict(objects())
    for made in found.values():
        jsonschema.validate(made, SCHEMA)
    bounds = {
        name: (made["spec"]["minReplicaCount"], made["spec"]["maxReplicaCount"])
        for name, made in found.items()
    }
    assert bounds == {"workers": (0, 100), "model-services": (1, 20), "gateways": (2, 10)}
    (tokens,) = (each for each in found["workers"]["spec"]["triggers"] if each["name"] == "token-rate")
    assert tokens["metadata"]["threshold"] == "5000"
    assert tokens["metadata"]["query"].startswith("60 * ")
    broken = json.loads(json.dumps(found["workers"]))
    broken["spec"]["triggers"][0]["metadata"]["limit"] = "1"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


@contextmanager
def model_server(folder: Path) -> Generator[str]:
    """Run ``weir runtime`` on a simulated model; yields its URL."""
    ready = folder / "ready"
    command = [sys.executable, "-m", "tokenweir", "runtime", str(directory(folder / "m")), "--port", "0"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([*command, "--ready-file", str(ready)], stdout=log, stderr=log) as child,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not (ready.exists() and ready.read_text().endswith("\n")):
                assert child.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield ready.read_text().strip()
        finally:
            child.terminate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Prometheus]:
    """Prometheus over a gateway that does everybody's work, and over a model server, after some requests."""
    with (
        SimProcess() as sim,
        model_server(tmp_path_factory.mktemp("runtime")) as runtime,
        gateway(
            endpoint("one", sim.url)
            + endpoint("two", runtime, model="m", kind="tokenweir")
            + endpoint("gone", "http://127.0.0.1:9", model="gone")
        ) as door,
    ):
        door.weir("quotas", "set", "400", "tokens", "--per", "month", "--user", "admin")
        user = User(door.url, door.key)

        def limited() -> bool | None:
            asked = user.ask("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 1})
            return True if "x-ratelimit-limit-tokens" in asked.headers else None

        waiting(limited, "the limit")
        for body in (CHAT, {**CHAT, "stream": True}, {**CHAT, "model": "m"}):
            assert user.ask("POST", "/v1/chat/completions", body).status == 200
        user.until(user.submit(tokens=4), "completed")
        long = [{"role": "user", "content": "long " * 2000}]
        assert user.ask("POST", "/v1/chat/completions", {**CHAT, "messages": long}).status == 429
        assert user.ask("POST", "/v1/chat/completions", {**CHAT, "model": "none"}).status == 404
        assert user.ask("POST", "/v1/chat/completions", {**CHAT, "model": "gone"}).status >= 500
        place, model = door.url.removeprefix("http://"), runtime.removeprefix("http://")
        # One process is all of them here.
        jobs = {job: [place] for job in ("weir-gateway", "weir-worker", "weir-collector")}
        with prometheus(tmp_path_factory.mktemp("prometheus"), {**jobs, "weir-runtime": [model]}) as made:

            def scraped() -> bool | None:
                counts = made.query('count_over_time(up{job=~"weir-.+"}[5m])')
                return (
                    True if len(counts) == 4 and all(float(one["value"][1]) >= 3 for one in counts) else None
                )

            waiting(scraped, "three scrapes of each")
            yield made


def test_every_expression_of_dashboards_and_scaling_gives_data(server: Prometheus) -> None:
    assert {one["metric"]["job"]: one["value"][1] for one in server.query("up")} == dict.fromkeys(
        ("weir-gateway", "weir-worker", "weir-collector", "weir-runtime"), "1"
    )
    for expression in [*queries(), *scaling().values()]:
        found = server.query(re.sub(r"\$\w+", ".+", expression))
        assert found or any(rare in expression for rare in RARE), expression


def test_every_alert_is_loaded_and_has_something_to_look_at(server: Prometheus) -> None:
    for name, rule in ALERTS.items():
        # Without its last comparison, it gives what is compared.
        whole = rule["expr"]
        expression = whole if " unless " in whole else re.sub(r" (==|>) [0-9].*$", "", whole)
        found = server.query(expression)
        assert found or any(rare in expression + name for rare in RARE), name
    # Nothing is wrong with this stack but for the limit that is meant to be nearly used.
    firing = {one["metric"]["alertname"] for one in server.query('ALERTS{alertstate="firing"}')}
    assert firing <= {"WeirQuotaNearlyUsed"}


# What makes each alert fire: series and their values, a minute apart; and the labels it fires with.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "WeirProcessDown": (
        {'up{job="weir-worker", instance="w"}': "0x60"},
        {"job": "weir-worker", "instance": "w"},
    ),
    "WeirErrorsHigh": (
        {
            'weir_gateway_requests_total{status="500"}': "0+10x60",
            'weir_gateway_requests_total{status="200"}': "0+90x60",
        },
        {},
    ),
    "WeirTtftSlow": (
        {
            f'weir_gateway_ttft_seconds_bucket{{path="direct", model="m", le="{le}"}}': values
            for le, values in (("1", "0x60"), ("5", "0+10x60"), ("+Inf", "0+10x60"))
        },
        {"model": "m"},
    ),
    "WeirBrownOut": ({"weir_gateway_brownout_rung": "1x60"}, {}),
    "WeirQueueOld": ({"weir_queue_oldest_seconds": "90x60"}, {}),
    "WeirNoWorker": ({"weir_queue_length": "5x60", 'up{job="weir-gateway"}': "1x60"}, {}),
    "WeirDeadLetters": ({"weir_queue_dead_letters": "1x60"}, {}),
    "WeirSettleLag": (
        {
            f'weir_settle_lag_seconds_bucket{{le="{le}"}}': values
            for le, values in (("1", "0x60"), ("10", "0+10x60"), ("+Inf", "0+10x60"))
        },
        {},
    ),
    "WeirUnsettled": ({"weir_gateway_unsettled": "2000x60"}, {}),
    "WeirReservationsKept": (
        {
            "weir_gateway_reservations_open": "5000x60",
            "weir_gateway_in_flight": "10x60",
            "weir_queue_length": "0x60",
            "weir_queue_unacknowledged": "0x60",
        },
        {},
    ),
    "WeirUsageEstimated": (
        {
            'weir_settled_requests_total{source="estimated"}': "0+10x60",
            'weir_settled_requests_total{source="server"}': "0+90x60",
        },
        {},
    ),
    "WeirQuotaNearlyUsed": (
        {'weir_quota_used_ratio{scope="user", subject="u", unit="tokens", window="month"}': "0.95x60"},
        {"scope": "user", "subject": "u", "unit": "tokens", "window": "month"},
    ),
    "WeirEndpointDown": ({'weir_gateway_endpoint_up{endpoint="e"}': "0x60"}, {"endpoint": "e"}),
    "WeirBreakerOpen": ({'weir_gateway_endpoint_breaker{endpoint="e"}': "2x60"}, {"endpoint": "e"}),
    "WeirComponentErrors": (
        {'weir_log_lines_total{job="weir-gateway", component="gateway", level="error"}': "0+60x60"},
        {"job": "weir-gateway", "component": "gateway"},
    ),
    "WeirRestarts": (
        {'process_start_time_seconds{job="weir-worker", instance="w"}': "0+60x60"},
        {"job": "weir-worker", "instance": "w"},
    ),
    "WeirDescriptors": (
        {
            'process_open_fds{job="weir-worker", instance="w"}': "90x60",
            'process_max_fds{job="weir-worker", instance="w"}': "100x60",
        },
        {"job": "weir-worker", "instance": "w"},
    ),
    "WeirTlsRefused": (
        {'weir_tls_refused_total{job="weir-gateway", reason="r"}': "0+120x60"},
        {"job": "weir-gateway", "reason": "r"},
    ),
}


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    assert set(CASES) == set(ALERTS)
    bare = json.loads(json.dumps(RULES))
    for group in bare["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(bare))

    def case(name: str, series: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": [{"series": each, "values": values} for each, values in series.items()],
            "alert_rule_test": [{"eval_time": "55m", "alertname": name, "exp_alerts": expected}],
        }

    quiet = {
        'up{job="weir-worker", instance="w"}': "1x60",
        "weir_queue_length": "5x60",
        'process_start_time_seconds{job="weir-worker", instance="w"}': "7x60",
        'weir_gateway_endpoint_up{endpoint="e"}': "1x60",
    }
    tests: list[dict[str, Any]] = []
    for name, (series, labels) in CASES.items():
        fires = {"exp_labels": {"severity": ALERTS[name]["labels"]["severity"], **labels}}
        tests.append(case(name, series, [fires]))
        calm = {each: quiet.get(each, "0x60") for each in (*series, 'up{job="weir-worker", instance="w"}')}
        tests.append(case(name, calm, []))
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The product's containers agree with the settings, proxies and watchers beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import yaml
from deploy.services.compose import COMPOSE_FILE
from deploy.services.group import SERVICES

from tokenweir.app import load_config
from tokenweir.cli.main import COMMANDS
from tokenweir.stores.gateway.opening import StoreUrls, check_urls

DEPLOY = COMPOSE_FILE.parent
SETTINGS = load_config(DEPLOY / "weir.toml")
COMPOSE = cast("dict[str, Any]", yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8")))
PRODUCT = {
    name: service for name, service in COMPOSE["services"].items() if "product" in service.get("profiles", ())
}
OURS = {name: service for name, service in PRODUCT.items() if service["image"] == "tokenweir:local"}
ONCE = {"first-key", "certificates"}


def test_services_alone_are_what_they_were_without_the_product() -> None:
    assert set(COMPOSE["services"]) - set(PRODUCT) == set(SERVICES)
    assert set(PRODUCT) >= {"gateway", "worker", "collector", "notifier", "nginx", "prometheus", "grafana"}


@pytest.mark.parametrize("name", PRODUCT)
def test_each_is_pinned_checked_and_reached_from_this_machine_alone(name: str) -> None:
    service = PRODUCT[name]
    if name not in OURS:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+[-a-z0-9]*", service["image"])
    assert name in ONCE or {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for volume in service.get("volumes", ()):
        source = volume.partition(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]
    for other, condition in service.get("depends_on", {}).items():
        needed = COMPOSE["services"][other]
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in needed, other
        else:
            assert other in ONCE


@pytest.mark.parametrize("name", OURS)
def test_ours_run_without_rights_and_by_commands_that_there_are(name: str) -> None:
    service = OURS[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    if "entrypoint" not in service:
        assert service["command"][0] in COMMANDS


def test_settings_name_what_runs_beside_them() -> None:
    stores = SETTINGS.stores
    for url in (stores.gateway, stores.access, stores.quota, stores.queue, stores.events):
        assert urlsplit(url).hostname in COMPOSE["services"], url
    assert all(urlsplit(endpoint.url).hostname in OURS for endpoint in SETTINGS.endpoints)
    assert "INSIDE://kafka:29092" in COMPOSE["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    check_urls(
        StoreUrls(gateway=stores.gateway, quota=stores.quota, queue=stores.queue, events=stores.events)
    )


def test_everybody_asks_at_the_ports_that_are_listened_at() -> None:
    listens = {
        name: int(service["command"][service["command"].index("--port") + 1])
        for name, service in OURS.items()
        if "--port" in service["command"]
    }
    listens |= {
        "worker": SETTINGS.worker.metrics_port or 0,
        "collector": SETTINGS.collector.metrics_port or 0,
    }
    watched = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = [
        target
        for job in watched["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert set(targets) == {f"{name}:{port}" for name, port in listens.items() if name != "sim"}
    passed = re.findall(
        r"^\s+server (\S+);", (DEPLOY / "nginx.conf").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(passed) == {f"{name}:{listens[name]}" for name in ("gateway", "notifier")}
    assert urlsplit(SETTINGS.endpoints[0].url).port == listens["sim"]
    for name, service in OURS.items():
        if name not in ONCE:
            assert f"127.0.0.1:{listens[name]}/" in service["healthcheck"]["test"][-1]
    source = (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text(
        encoding="utf-8"
    )
    assert "http://prometheus:9090" in source


def test_the_image_is_made_of_what_there_is() -> None:
    made = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    let_in = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.+)$", made, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (DEPLOY.parent / source).exists(), source
            assert f"!{source}\n" in let_in
    project = Path(DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"\.\[([a-z,]+)\]", made)
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))

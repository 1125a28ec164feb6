"""The compose file agrees with the services run as processes, and the engine is asked what it should be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from deploy.services.compose import COMPOSE_FILE, ComposeRunner
from deploy.services.group import SERVICES, Services
from deploy.services.kafka import POM
from deploy.services.service import MissingProgramError, Site

from tokenweir.core.errors import ResourceError

_ENGINE = """#!/bin/sh
# Stands in for a container engine: notes how it was asked, and the ports it was given.
echo "$@" >> {calls}
while [ $# -gt 0 ]; do
  if [ "$1" = --env-file ]; then cat "$2" >> {ports}; fi
  case "$1" in ps) echo redis;; kill) [ -e {broken} ] && echo "no such container" >&2 && exit 1;; esac
  shift
done
exit 0
"""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load(COMPOSE_FILE.read_text()))


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_there_pinned_checked_and_open_on_loopback_only(
    compose: dict[str, Any], name: str
) -> None:
    service = compose["services"][name]
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+[-a-z0-9]*", service["image"])
    assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert all(port.startswith("127.0.0.1:${WEIR_PORT_") for port in service["ports"])
    volume, _, path = service["volumes"][0].partition(":")
    assert volume in compose["volumes"]
    assert path.startswith("/")


def test_ports_that_are_published_are_those_of_the_services(compose: dict[str, Any]) -> None:
    published = {
        match.lower()
        for service in compose["services"].values()
        for port in service.get("ports", [])
        for match in re.findall(r"WEIR_PORT_([A-Z]+)", port)
    }
    named = {port for service in SERVICES.values() for port in service.ports}
    assert published == named - {"controller", "distribution", "epmd"}
    assert {service.ports[0] for service in SERVICES.values()} <= published


def test_kafka_is_of_one_version_however_it_is_run(compose: dict[str, Any]) -> None:
    version = compose["services"]["kafka"]["image"].partition(":")[2]
    assert f"<version>{version}</version>" in POM.read_text()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    script = tmp_path / "engine"
    script.write_text(
        _ENGINE.format(calls=tmp_path / "calls", ports=tmp_path / "ports", broken=tmp_path / "broken")
    )
    script.chmod(0o755)
    return script


def test_the_engine_is_told_what_to_do_with_which_service_and_ports(engine: Path, tmp_path: Path) -> None:
    runner, service = ComposeRunner(str(engine)), SERVICES["redis"]
    site = Site(tmp_path / "services" / "redis", tmp_path, {"redis": 20_001})
    assert runner.available()
    assert runner.start(service, site) is None
    assert runner.alive(service, site, None)
    assert not runner.alive(SERVICES["kafka"], site, None)
    for action in ("stop", "kill", "pause", "resume"):
        runner.act(action, service, site, None)
    runner.purge([site])
    calls = (tmp_path / "calls").read_text().splitlines()
    asked = [call.partition("ports.env ")[2] for call in calls if "ports.env" in call]
    assert [call for call in asked if not call.startswith("ps ")] == [
        "up --detach redis",
        "stop redis",
        "kill --signal KILL redis",
        "pause redis",
        "unpause redis",
        "down --volumes",
    ]
    assert len({re.search(r"--project-name (weir-\w{8}) ", call) is not None for call in calls[2:]}) == 1
    assert set((tmp_path / "ports").read_text().split()) == {"WEIR_PORT_REDIS=20001"}


def test_what_the_engine_refuses_is_said_in_its_words(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    site = Site(tmp_path / "services" / "redis", tmp_path, {"redis": 20_001})
    with pytest.raises(ResourceError, match="compose kill failed: no such container"):
        ComposeRunner(str(engine)).act("kill", SERVICES["redis"], site, None)


def test_without_an_engine_the_mode_is_missing(tmp_path: Path) -> None:
    services = Services(tmp_path / "services", runner=ComposeRunner(str(tmp_path / "none")))
    outcome = services.start(["redis"])
    assert isinstance(outcome.errors["redis"], MissingProgramError)
    assert "--mode local" in str(outcome.errors["redis"])

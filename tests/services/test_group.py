"""Services are shared, reused, restarted and ended by whom they belong to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from deploy.services import group
from deploy.services.group import CACHE, SERVICES, Services
from deploy.services.local import LocalRunner
from deploy.services.ports import LOOPBACK
from deploy.services.process import Command, Process
from deploy.services.redis import Redis
from deploy.services.service import MissingProgramError, Site
from tests.services.own import connect_redis
from tests.services.plugin import absent

from tokenweir.core.errors import ResourceError


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(tmp_path / "services", runner=LocalRunner())
    if missing := made.missing(["redis"]):
        absent("redis", missing["redis"])
    yield made
    made.stop()


@pytest.fixture
def other_user(tmp_path: Path) -> Iterator[Process]:
    process = Process.spawn(Command(["/bin/sleep", "300"], {}), tmp_path / "other")
    yield process
    process.kill()


def _pid(services: Services) -> int:
    state = json.loads((services.home / "state.json").read_text())
    return int(state["services"]["redis"]["process"]["pid"])


def test_a_second_start_reuses_and_a_start_after_a_crash_restarts_at_the_same_url(services: Services) -> None:
    first = services.start(["redis"])
    pid = _pid(services)
    assert services.start(["redis"]).urls == first.urls
    assert _pid(services) == pid
    services.act("kill", "redis")
    assert services.status() == {}
    assert services.start(["redis"]).urls == first.urls == services.status()
    assert _pid(services) != pid


def test_urls_are_written_for_others_and_taken_back_at_the_stop(services: Services) -> None:
    url = services.start(["redis"]).urls["redis"]["redis"]
    assert json.loads((services.home / "services.json").read_text()) == {"redis": url}
    assert (services.home / "services.env").read_text() == f"REDIS_URL={url}\n"
    assert services.stop() == ["redis"]
    assert json.loads((services.home / "services.json").read_text()) == {}
    assert services.stop() == []


def test_they_end_with_their_last_user_and_take_their_data_along(
    services: Services, other_user: Process
) -> None:
    me = Process.of(os.getpid())
    url = services.start(["redis"], user=me).urls["redis"]["redis"]
    services.start(["redis"], user=other_user)
    with closing(connect_redis(url)) as client:
        client.set("key", 1)
    services.release(me)
    assert "redis" in services.status()
    services.release(other_user)
    assert services.status() == {}
    assert not (services.home / "redis").exists()


def test_a_user_that_died_holds_nothing(services: Services, other_user: Process) -> None:
    services.start(["redis"], user=other_user)
    services.release()
    assert "redis" in services.status()
    other_user.kill()
    services.release()
    assert services.status() == {}
    assert services.deserted


def test_kept_services_outlive_a_user(services: Services) -> None:
    me = Process.of(os.getpid())
    services.start(["redis"])
    services.start(["redis"], user=me)
    services.release(me)
    assert "redis" in services.status()


def test_a_port_taken_meanwhile_is_replaced(services: Services) -> None:
    first = services.start(["redis"]).urls
    port = services.site("redis").ports["redis"]
    services.act("kill", "redis")
    with socket.create_server((LOOPBACK, port)):
        second = services.start(["redis"])
    assert not second.errors
    assert second.urls != first


def test_one_that_cannot_start_is_reported_with_its_log_and_leaves_no_process(services: Services) -> None:
    class Broken(Redis):
        def prepare(self, site: Site) -> Command:
            return Command(["/bin/sh", "-c", "echo no room; exit 3"], {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "SERVICES", {**SERVICES, "redis": Broken()})
        outcome = services.start(["redis"])
    assert outcome.urls == {}
    error = outcome.errors["redis"]
    assert isinstance(error, ResourceError)
    assert "redis ended; its log ends:\nno room" in str(error)
    assert services.status() == {}


def test_a_program_that_is_not_installed_is_named_with_its_package(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = services.start(["redis"])
    assert "apt-get install redis-server" in str(outcome.errors["redis"])
    assert isinstance(outcome.errors["redis"], MissingProgramError)


def test_a_state_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"services": 3}')
    with pytest.raises(ResourceError, match=r"state\.json cannot be read"):
        Services(tmp_path)


_NEVER_READY = """
import pathlib, sys
from deploy.services import group
from deploy.services.redis import Redis
class Slow(Redis):
    def ready(self, ports): return False
group.SERVICES["redis"] = Slow()
group.Services(pathlib.Path(sys.argv[1])).start(["redis"])
"""


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.services", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=CACHE.parents[1],
        timeout=60,
    )


def test_the_command_prints_a_table_for_the_settings_and_ends_only_its_own(services: Services) -> None:
    home = str(services.home)
    started = _command("start", "redis", "--home", home, "--mode", "local")
    assert started.returncode == 0, started.stderr
    url = services.status()["redis"]["redis"]
    assert f'[stores]\nquota = "{url}"' in started.stdout
    assert _command("status", "--home", home).stdout.split() == ["redis", url]
    assert _command("stop", "--home", home, "--purge").stdout == "stopped: redis\n"
    assert not (services.home / "redis").exists()
    assert _command("stop", "--home", home).stdout == "none was running\n"


def test_an_interrupted_command_leaves_nothing_that_a_stop_does_not_end(
    services: Services, tmp_path: Path
) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-c", _NEVER_READY, str(services.home)], cwd=CACHE.parents[1], stderr=subprocess.PIPE
    )
    try:
        log = services.home / "redis" / "log.txt"
        while not (log.exists() and "Ready to accept" in log.read_text()):
            assert starting.poll() is None
            time.sleep(0.02)
        starting.send_signal(signal.SIGINT)
        assert starting.wait(20) != 0
    finally:
        starting.kill()
        starting.communicate()
    assert services.status() == {}

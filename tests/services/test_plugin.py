"""A run of tests shares services among its workers, ends them, and names what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deploy.services.group import REPOSITORY, Services

_CONFTEST = """
from pathlib import Path
from tests.services import plugin
plugin.HOME = Path({kept!r})
plugin.TESTS_HOME = Path({home!r})
"""
_TESTS = """
import pytest, redis
from pathlib import Path
@pytest.mark.parametrize("number", range(6))
def test_own(redis_url, number):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("key", number)
        with Path({seen!r}).open("a") as seen:
            seen.write(redis_url + " " + client.info()["run_id"] + chr(10))
"""


class Inner:
    """A run of pytest apart from this one, with services of its own."""

    def __init__(self, folder: Path) -> None:
        self.kept = Services(folder / "kept")
        self.own = Services(folder / "own")
        self.seen = folder / "seen"
        self._folder = folder / "inner"
        self._folder.mkdir()
        conftest = _CONFTEST.format(kept=str(self.kept.home), home=str(self.own.home))
        (self._folder / "conftest.py").write_text(conftest)
        (self._folder / "test_inner.py").write_text(_TESTS.format(seen=str(self.seen)))

    def run(self, *arguments: str, **environment: str) -> str:
        """Return what pytest printed."""
        inherited = {name: value for name, value in os.environ.items() if name != "CI"}  # noqa: TID251
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "tests.services.plugin", "-p", "no:cacheprovider"),
                *("-c", os.devnull, f"--rootdir={self._folder}", "-rs", *arguments, str(self._folder)),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            timeout=100,
            env=inherited | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment,
        )
        return done.stdout

    def servers(self) -> tuple[set[str], set[str]]:
        """Return the URLs and the servers that tests were given."""
        lines = [line.split() for line in self.seen.read_text().splitlines()]
        assert len(lines) == 6
        return {url for url, _ in lines}, {server for _, server in lines}


@pytest.fixture
def inner(tmp_path: Path) -> Inner:
    return Inner(tmp_path)


@pytest.mark.usefixtures("redis_url")
def test_workers_share_one_server_that_ends_with_the_run(inner: Inner) -> None:
    assert "6 passed" in inner.run("-p", "xdist", "-n", "2")
    urls, servers = inner.servers()
    assert len(urls) == 6
    assert len(servers) == 1
    assert inner.own.status() == {}
    assert inner.own.deserted
    assert not (inner.own.home / "redis").exists()


@pytest.mark.usefixtures("redis_url")
def test_kept_services_are_used_and_left_running(inner: Inner) -> None:
    inner.kept.start(["redis"])
    try:
        before = inner.kept.status()
        assert "6 passed" in inner.run()
        assert inner.kept.status() == before
        assert not inner.own.home.exists()
        assert {url.rpartition("/")[0] for url in inner.servers()[0]} == {
            before["redis"]["redis"].rpartition("/")[0]
        }
    finally:
        inner.kept.stop()


def test_a_service_that_is_not_installed_skips_and_is_named(inner: Inner, tmp_path: Path) -> None:
    printed = inner.run(PATH=str(tmp_path))
    assert "6 skipped" in printed
    assert (
        "no redis: program 'redis-server' was not found; install it: apt-get install redis-server" in printed
    )


def test_a_service_that_is_not_installed_fails_in_ci(inner: Inner, tmp_path: Path) -> None:
    printed = inner.run(PATH=str(tmp_path), CI="true")
    assert "6 errors" in printed
    assert "no redis: program 'redis-server' was not found" in printed

"""Debian's Prometheus on deploy/prometheus, on a free port and with the jobs' addresses of a test."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from tests.factories.programs import program

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
START_S = 60.0


class Prometheus:
    """A server that asks."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression now. Raises AssertionError for one that cannot be read."""
        asked = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{asked}", timeout=30) as answer:  # noqa: S310 - ours
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        assert told["status"] == "success", told
        return cast("list[dict[str, Any]]", told["data"]["result"])


def _settings(folder: Path, jobs: Mapping[str, Sequence[str]]) -> Path:
    """Write the deployed settings with the test's own addresses and pace."""
    settings = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text(encoding="utf-8"))
    settings["global"] |= {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    names = [job["job_name"] for job in settings["scrape_configs"]]
    assert set(jobs) <= set(names), names
    for job in settings["scrape_configs"]:
        job["static_configs"] = [{"targets": list(jobs.get(job["job_name"], ()))}]
    settings["rule_files"] = [str(DEPLOYED / "rules.yml")]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@contextmanager
def prometheus(folder: Path, jobs: Mapping[str, Sequence[str]]) -> Generator[Prometheus]:
    """Run it over these addresses by job."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        place = f"127.0.0.1:{held.getsockname()[1]}"
    command = [
        program("prometheus"),
        f"--config.file={_settings(folder, jobs)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={place}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as child:
        try:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    urllib.request.urlopen(f"http://{place}/-/ready", timeout=5).close()
                    break
                except OSError:
                    if child.poll() is not None or time.monotonic() > deadline:
                        raise AssertionError((folder / "log").read_text()) from None
                    time.sleep(0.05)
            yield Prometheus(f"http://{place}")
        finally:
            child.terminate()

"""PostgreSQL, Redis, RabbitMQ and Kafka on this machine, for the benchmarks of what runs over shared stores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

from deploy.services.group import SERVICES, Services, choose_runner
from deploy.services.state import StateFile

from benchmarks.harness import weir
from tokenweir.stores.gateway.opening import StoreUrls

HOME = Path(__file__).parent / "cache" / "services"
START_S = 60.0
STOP_S = 5.0
STORES = {"gateway": "postgresql", "quota": "redis", "queue": "rabbitmq", "events": "kafka"}


@contextlib.contextmanager
def shared_stores() -> Generator[Mapping[str, str]]:
    """Run the services while the block runs, and yield the URLs of ``[stores]`` by name. They begin empty."""
    services = Services(HOME, runner=choose_runner("local"))
    services.stop()
    services.purge()
    started = services.start(list(SERVICES))
    try:
        if started.errors:
            raise RuntimeError(f"services did not start: {started.errors}")
        yield {store: started.urls[name][name] for store, name in STORES.items()}
    finally:
        services.stop()


def kafka_pid() -> int:
    """Return the process of the Kafka that runs."""
    found = StateFile(HOME).read().services["kafka"].process
    if found is None:
        raise RuntimeError("Kafka is no process of this machine")
    return found.pid


def table(urls: Mapping[str, str]) -> str:
    """Return the settings' ``[stores]``, to which more of its keys may be added."""
    return "\n".join(["[stores]", *(f'{store} = "{url}"' for store, url in urls.items()), ""])


def store_urls(urls: Mapping[str, str]) -> StoreUrls:
    """Return the same for who opens the stores in his own process."""
    return StoreUrls(**urls)


@contextlib.contextmanager
def process(role: str, settings: str, *, cores: Iterable[int], log: Path) -> Generator[int]:
    """Run ``weir ROLE`` with settings and yield its process id once it is ready. What it says is in ``log``."""
    home = log.parent
    config = home / f"{log.stem}.toml"
    config.write_text(settings)
    with log.open("w") as output:
        child = subprocess.Popen(
            weir("--config", str(config), role),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "WEIR_HOME": str(home)},  # noqa: TID251 - a child is given it whole
        )
    os.sched_setaffinity(child.pid, set(cores))
    deadline = time.monotonic() + START_S
    try:
        while f"weir {role}: " not in log.read_text():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.005)
        yield child.pid
        if child.poll() is not None:
            raise RuntimeError(log.read_text())
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

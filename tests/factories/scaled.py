"""Gateways, workers, collectors and notifiers as processes of their own over shared stores, as they are deployed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.factories.queued import User

from tokenweir.config import child_environment

READY_S = 120.0
_LOOK_S = 0.01
_PLAIN = (sys.executable, "-m", "tokenweir")


def said(log: str) -> str:
    """Return the line by which a process says that it is ready: its name, and where it listens if it does."""
    lines = (line for line in log.splitlines(keepends=True) if line.endswith("\n"))
    return next((line for line in lines if line.startswith("weir ") and "ready" in line.split()), "")


class Child:
    """A ``weir`` process that says when it is ready. ``url`` is where it listens, if it does."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.url = ""
        self._log = log
        with log.open("w", encoding="utf-8") as output:
            self._child = subprocess.Popen(
                list(command), stdout=output, stderr=subprocess.STDOUT, env=child_environment(environment)
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    def ready(self) -> None:
        """Return when it has said so."""
        deadline = time.monotonic() + READY_S
        while not (line := said(self.log())):
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} did not start:\n{self.log()}")
            time.sleep(_LOOK_S)
        address = line.split()[2]
        self.url = address if address.startswith("http") else ""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._child.poll() is None

    def kill(self) -> None:
        """End it as a power failure would."""
        self._child.kill()
        self._child.wait()

    def stop(self) -> int:
        """End it as an operator does, and return its status."""
        self._child.send_signal(signal.SIGTERM)
        return self._child.wait(READY_S)

    def gone(self) -> int:
        """Wait until it has ended, and return its status."""
        return self._child.wait(READY_S)

    def log(self) -> str:
        """Return what it has printed."""
        return self._log.read_text(encoding="utf-8")

    def resident_bytes(self) -> int:
        """Return how much memory it holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * 4096


class Scaled:
    """A deployment: one settings file, and processes that share its stores. ``key`` belongs to its first user."""

    def __init__(self, home: Path, urls: Mapping[str, str], settings: str) -> None:
        self.home = home
        self.config = home / "weir.toml"
        stores = (
            "[stores]\n"
            f'gateway = "{urls["postgresql"]}"\naccess = "{urls["postgresql"]}"\nquota = "{urls["redis"]}"\n'
            f'queue = "{urls.get("rabbitmq", urls["kafka"])}"\nevents = "{urls["kafka"]}"\n'
        )
        self.config.write_text(stores + settings, encoding="utf-8")
        self._children: list[Child] = []
        self.key = ""

    def weir(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a ``weir`` command over the same stores."""
        return subprocess.run(
            [*_PLAIN, "--config", str(self.config), *arguments],
            env=child_environment({"WEIR_HOME": str(self.home)}),
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_S,
        )

    def add_user(self, name: str) -> str:
        """Add a user and return a key of his."""
        made = self.weir("users", "add", name)
        assert made.returncode == 0, made.stderr
        made = self.weir("keys", "create", name)
        assert made.returncode == 0, made.stderr
        return next(word for word in made.stdout.split() if word.startswith("weir_"))

    def begin(
        self, *command: str, launch: Sequence[str] = _PLAIN, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Begin to start a process; :meth:`Child.ready` waits for it."""
        number = len(self._children)
        child = Child(
            f"{command[0]} {number}",
            [*launch, "--config", str(self.config), *command],
            self.home / f"{number}-{command[0]}.log",
            {"WEIR_HOME": str(self.home), **(environment or {})},
        )
        self._children.append(child)
        return child

    def start(self, *commands: Sequence[str]) -> list[Child]:
        """Start processes at once, and return when all are ready."""
        begun = [self.begin(*command) for command in commands]
        for child in begun:
            child.ready()
        return begun

    def user(self, door: Child) -> User:
        """Return the first user, at a door."""
        return User(door.url, self.key)

    def verified(self) -> list[str]:
        """Return what ``weir quotas verify`` finds wrong."""
        told = self.weir("quotas", "verify")
        return [] if told.returncode == 0 else [told.stdout + told.stderr]

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the ledger by request, each of which there is once."""
        told = self.weir("usage", "--by", "request", "--csv")
        assert told.returncode == 0, told.stderr
        head, *lines = told.stdout.splitlines()
        rows = [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]
        found: dict[str, dict[str, Any]] = {str(row["request"]): dict(row) for row in rows}
        assert len(found) == len(rows), "a request is in the ledger twice"
        return found

    def close(self) -> None:
        """End all that run."""
        for child in self._children:
            if child.alive:
                child.kill()


@contextmanager
def scaled(home: Path, urls: Mapping[str, str], settings: str) -> Generator[Scaled]:
    """Give a deployment over these services: PostgreSQL, Redis, Kafka, and RabbitMQ unless jobs are in Kafka."""
    made = Scaled(home, urls, settings)
    try:
        made.key = made.add_user("ada")
        yield made
    finally:
        made.close()

"""The services of one folder: started together, shared by who uses them, ended with the last."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

from deploy.services.compose import ComposeRunner
from deploy.services.kafka import Kafka
from deploy.services.local import LocalRunner
from deploy.services.ports import free_ports, is_free
from deploy.services.postgresql import PostgreSQL
from deploy.services.process import Process
from deploy.services.rabbitmq import RabbitMQ
from deploy.services.redis import Redis
from deploy.services.runner import Action, Runner
from deploy.services.service import Service, Site
from deploy.services.state import Entry, State, StateFile

from tokenweir.core.errors import ResourceError, WeirError

SERVICES: Mapping[str, Service] = {
    service.name: service for service in (PostgreSQL(), Redis(), RabbitMQ(), Kafka())
}
REPOSITORY = Path(__file__).parents[2]
HOME = REPOSITORY / ".services"
CACHE = HOME / "cache"
TESTS_HOME = HOME / "tests"
"""What test runs share, when the services that they need are not kept running already."""
OWN_HOMES = HOME / "own"
"""A folder for each set of services that one test module has to itself."""
READY_TIMEOUT_S = 180.0
_PAUSE_S = 0.05


@dataclass
class Outcome:
    """What a start came to, by name: URLs of what is ready, seconds it took, errors of what is not."""

    urls: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    errors: dict[str, WeirError] = field(default_factory=dict[str, WeirError])


class Services:
    """The services below ``home``; commands, test runs and their workers may hold the same at once.

    Without ``runner`` it is the one that started what is there, else processes of this machine.
    """

    def __init__(self, home: Path = HOME, *, runner: Runner | None = None, cache: Path = CACHE) -> None:
        self._home = home.resolve()
        self._cache = cache.resolve()
        self._file = StateFile(self._home)
        self._runner = runner or choose_runner(self._file.read().mode)
        self._writing = Lock()
        self._interrupted = Event()

    @property
    def home(self) -> Path:
        """The folder that holds their state, logs and data."""
        return self._home

    @property
    def deserted(self) -> bool:
        """Whether nobody uses them and none are left."""
        state = self._file.read()
        return self._file.exists() and not state.users and not state.services

    def start(self, names: Sequence[str], *, user: Process | None = None) -> Outcome:
        """Start all of ``names`` at once and wait until each is ready; those that run already are reused.

        With ``user`` they end when that process lets go of them, or is found dead; without, they are kept until
        they are stopped.
        """
        outcome = Outcome()
        with self._file.locked() as state:
            if not self._running(state):
                state.mode = self._runner.mode
            elif state.mode != self._runner.mode:
                raise ResourceError(
                    f"services of mode {state.mode!r} run in {self._home}",
                    mend="stop them first: make services-stop",
                )
            state.users = [one for one in state.users if one.alive and one != user]
            if user is None:
                state.kept = True
            else:
                state.users.append(user)
            self._bring_up_all(state, names, outcome)
            self._write(state)
            self._publish(state)
        return outcome

    def stop(self, names: Sequence[str] | None = None) -> list[str]:
        """End ``names`` or all, keeping their data; return what was running."""
        with self._file.locked() as state:
            running = [name for name in self._running(state) if names is None or name in names]
            self._act_on(state, running, "stop")
            if names is None:
                state.kept = False
                state.users = []
            self._write(state)
            self._publish(state)
        return running

    def release(self, user: Process | None = None) -> None:
        """Let ``user`` and users found dead go; when none is left and none are kept, end all and remove their data."""
        users = self._file.read().users
        if all(one.alive and one != user for one in users) and (users or not self._file.exists()):
            return
        with self._file.locked() as state:
            state.users = [one for one in state.users if one.alive and one != user]
            if not state.users and not state.kept:
                self._act_on(state, self._running(state), "stop")
                self._runner.purge([self._site(state, name) for name in state.services])
                state.services = {}
            self._write(state)
            self._publish(state)

    def act(self, action: Action, name: str) -> None:
        """Stop, kill, pause or resume one service that runs."""
        with self._file.locked() as state:
            self._act_on(state, [name], action)
            self._write(state)

    def fetch(self, names: Sequence[str]) -> None:
        """Download what ``names`` need beyond packages, so that a later start needs no network."""
        for name in names:
            SERVICES[name].fetch(self._cache)

    def missing(self, names: Sequence[str]) -> dict[str, WeirError]:
        """Return why each of ``names`` that cannot be run here cannot."""
        found: dict[str, WeirError] = {}
        for name in names:
            try:
                self._runner.require(SERVICES[name], self._site(State(), name))
            except WeirError as error:
                found[name] = error
        return found

    def status(self) -> dict[str, dict[str, str]]:
        """Return the URLs of those that serve now."""
        state = self._file.read()
        return {
            name: self._urls(state, name)
            for name in self._running(state)
            if _ready(SERVICES[name], state.services[name].ports)
        }

    def site(self, name: str) -> Site:
        """Return where a service that was started here lives."""
        return self._site(self._file.read(), name)

    def tail(self, name: str) -> str:
        """Return the end of the service's log."""
        return self._runner.tail(SERVICES[name], self._site(self._file.read(), name))

    def purge(self) -> None:
        """Remove the data of all services that do not run."""
        with self._file.locked() as state:
            running = self._running(state)
            ended = [name for name in state.services if name not in running]
            self._runner.purge([self._site(state, name) for name in ended])
            for name in ended:
                del state.services[name]
            self._write(state)

    def _bring_up_all(self, state: State, names: Sequence[str], outcome: Outcome) -> None:
        with ThreadPoolExecutor(max_workers=len(names) or 1) as pool:
            waiting = {name: pool.submit(self._bring_up, state, name) for name in names}
            try:
                for name, done in waiting.items():
                    try:
                        outcome.seconds[name] = done.result()
                        outcome.urls[name] = self._urls(state, name)
                    except WeirError as error:
                        outcome.errors[name] = error
            except KeyboardInterrupt:
                self._interrupted.set()
                raise

    def _bring_up(self, state: State, name: str) -> float:
        """Have ``name`` running and ready; return the seconds it took. Runs in a thread of its own."""
        began = time.monotonic()
        service, entry = SERVICES[name], state.services.get(name)
        if entry is None or not self._runner.alive(service, self._site(state, name), entry.process):
            self._runner.require(service, self._site(state, name))
            ports = entry.ports if entry else {}
            if set(ports) != set(service.ports) or not all(map(is_free, ports.values())):
                ports = dict(zip(service.ports, free_ports(len(service.ports)), strict=True))
            entry = Entry(ports)
            with self._writing:
                state.services[name] = entry
            entry.process = self._runner.start(service, self._site(state, name))
            # Known before it is ready: whoever interrupts this can still be followed by a stop.
            self._write(state)
        try:
            self._wait_until_ready(service, entry, self._site(state, name))
        except ResourceError:
            self._runner.act("kill", service, self._site(state, name), entry.process)
            raise
        return time.monotonic() - began

    def _wait_until_ready(self, service: Service, entry: Entry, site: Site) -> None:
        end = time.monotonic() + READY_TIMEOUT_S
        while not _ready(service, entry.ports):
            gone = not self._runner.alive(service, site, entry.process)
            if gone or time.monotonic() >= end:
                what = "ended" if gone else f"was not ready after {READY_TIMEOUT_S:g} s"
                raise ResourceError(
                    f"{service.name} {what}; its log ends:\n{self._runner.tail(service, site)}",
                    mend=f"mend the cause, or begin with empty data: remove {site.home}",
                )
            if self._interrupted.wait(_PAUSE_S):
                raise ResourceError(f"the start of {service.name} was interrupted", mend="start it again")

    def _act_on(self, state: State, names: Sequence[str], action: Action) -> None:
        with ThreadPoolExecutor(max_workers=len(names) or 1) as pool:
            waiting = [
                pool.submit(
                    self._runner.act,
                    action,
                    SERVICES[name],
                    self._site(state, name),
                    state.services[name].process,
                )
                for name in names
            ]
            for done in waiting:
                done.result()

    def _running(self, state: State) -> list[str]:
        return [
            name
            for name, entry in state.services.items()
            if self._runner.alive(SERVICES[name], self._site(state, name), entry.process)
        ]

    def _urls(self, state: State, name: str) -> dict[str, str]:
        return SERVICES[name].urls(state.services[name].ports)

    def _site(self, state: State, name: str) -> Site:
        entry = state.services.get(name)
        return Site(self._home / name, self._cache, entry.ports if entry else {})

    def _publish(self, state: State) -> None:
        """Write the URLs of what runs for others to read: as JSON, and as lines for a shell."""
        urls = {
            purpose: url for name in self._running(state) for purpose, url in self._urls(state, name).items()
        }
        listed = json.dumps(urls, indent=2) + "\n"
        lines = "".join(f"{purpose.upper()}_URL={url}\n" for purpose, url in urls.items())
        (self._home / "services.json").write_text(listed)
        (self._home / "services.env").write_text(lines)

    def _write(self, state: State) -> None:
        with self._writing:
            self._file.write(state)


def choose_runner(mode: str) -> Runner:
    """Return the runner of ``mode``; ``auto`` is a container engine where one runs, else this machine."""
    compose = ComposeRunner()
    if mode == "compose" or (mode == "auto" and compose.available()):
        return compose
    return LocalRunner()


def sweep() -> None:
    """End what test runs left behind that were killed before they could."""
    for home in (TESTS_HOME, *OWN_HOMES.glob("*")):
        services = Services(home)
        services.release()
        if home != TESTS_HOME and services.deserted:
            shutil.rmtree(home, ignore_errors=True)


def _ready(service: Service, ports: Mapping[str, int]) -> bool:
    try:
        return service.ready(ports)
    except OSError:
        return False

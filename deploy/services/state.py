"""What is remembered between commands: ``state.json`` in the services' folder, changed under a lock."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from deploy.services.process import Process

from tokenweir.core.errors import ResourceError


class Entry(msgspec.Struct):
    """One service: where it is found and, for a process of ours, which one it is."""

    ports: dict[str, int]
    process: Process | None = None


class State(msgspec.Struct):
    """``kept`` services run until they are stopped; others end with the last of their ``users``."""

    mode: str = "local"
    kept: bool = False
    users: list[Process] = []
    services: dict[str, Entry] = {}


class StateFile:
    """The state below ``home``; whoever holds ``locked()`` is the only one to read and write it."""

    def __init__(self, home: Path) -> None:
        self._path = home / "state.json"
        self._lock = home / "lock"

    @contextmanager
    def locked(self) -> Generator[State]:
        """Hold the lock; waits for whoever starts or stops services of this folder now."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            yield state

    def exists(self) -> bool:
        """Whether services were ever started here."""
        return self._path.exists()

    def read(self) -> State:
        """Return what was last written, or an empty state.

        Raises:
            ResourceError: the file is not one of ours.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except msgspec.DecodeError as error:
            raise ResourceError(
                f"{self._path} cannot be read: {error}",
                mend="end the services it names by hand and remove the file",
            ) from error

    def write(self, state: State) -> None:
        """Replace the file as a whole."""
        text = msgspec.json.format(msgspec.json.encode(state), indent=2)
        scratch = self._path.with_suffix(".new")
        scratch.write_bytes(text + b"\n")
        scratch.replace(self._path)

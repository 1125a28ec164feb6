"""What is known of a service: how to run it here, when it is ready, where it is found."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.services.ports import LOOPBACK
from deploy.services.process import Command

from tokenweir.core.errors import ResourceError

USER = "weir"
PASSWORD = "weir"  # noqa: S105 - opens a service that listens on loopback only
PROBE_TIMEOUT_S = 2.0


class MissingProgramError(ResourceError):
    """A program that a service needs is not installed."""

    code = "missing_program"


@dataclass(frozen=True)
class Site:
    """Where one service lives: its own folder, the downloads that all share, its ports by purpose."""

    home: Path
    cache: Path
    ports: Mapping[str, int]


class Service(Protocol):
    """One of the services. ``ports`` names what it listens on; the first is the one its clients use."""

    name: str
    ports: tuple[str, ...]
    stop_signal: signal.Signals

    def require(self, cache: Path) -> None:
        """Return if all that it needs is here or can be fetched.

        Raises:
            MissingProgramError: it cannot run here; the mend names the package.
        """
        ...

    def fetch(self, cache: Path) -> None:
        """Download what is not part of a package of the system or of Python, once for all sites."""
        ...

    def prepare(self, site: Site) -> Command:
        """Make the site's files, unless they are there, and return the command that runs it in the foreground."""
        ...

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Ask it, on the wire, whether it serves; False as well when there is no connection.

        Raises:
            OSError: the same as False.
        """
        ...

    def urls(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Return its URLs by purpose; the first is the one that settings take."""
        ...


def find_program(name: str, package: str, *places: Path) -> Path:
    """Return the path of program ``name``, searched for on PATH and then in ``places``.

    Raises:
        MissingProgramError: it is in none of them; the mend names the Debian ``package``.
    """
    if found := shutil.which(name):
        return Path(found)
    for place in places:
        if (place / name).is_file():
            return place / name
    raise MissingProgramError(
        f"program {name!r} was not found", mend=f"install it: apt-get install {package}"
    )


def plain_environment(home: Path) -> dict[str, str]:
    """Return an environment that carries nothing of the caller's but the search path."""
    return {"PATH": os.pathsep.join(os.get_exec_path()), "HOME": str(home), "LANG": "C.UTF-8", "TZ": "UTC"}


def ask(port: int, question: bytes, length: int) -> bytes:
    """Send ``question`` and return the first ``length`` bytes of the answer, fewer when it ends before."""
    with socket.create_connection((LOOPBACK, port), PROBE_TIMEOUT_S) as connection:
        connection.sendall(question)
        answer = b""
        while len(answer) < length and (chunk := connection.recv(length - len(answer))):
            answer += chunk
        return answer

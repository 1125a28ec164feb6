"""Services as containers of ``deploy/compose.yaml``."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.services.process import Process
from deploy.services.runner import TAIL_BYTES, Action, Runner
from deploy.services.service import MissingProgramError, Service, Site

from tokenweir.core.errors import ResourceError

COMPOSE_FILE = Path(__file__).parents[1] / "compose.yaml"
_COMMANDS: Mapping[Action, Sequence[str]] = {
    "stop": ("stop",),
    "kill": ("kill", "--signal", "KILL"),
    "pause": ("pause",),
    "resume": ("unpause",),
}
_PROBE_TIMEOUT_S = 10.0
# The first start fetches the images.
_ENGINE_TIMEOUT_S = 600.0


class ComposeRunner(Runner):
    """One compose project per folder of services, so that several stand side by side."""

    mode = "compose"

    def __init__(self, engine: str = "docker", file: Path = COMPOSE_FILE) -> None:
        self._engine = engine
        self._file = file

    def require(self, service: Service, site: Site) -> None:
        """Need an engine that runs."""
        del service, site
        if not self.available():
            raise MissingProgramError(
                f"no container engine with compose answers to {self._engine!r}",
                mend="start it, or say --mode local",
            )

    def available(self) -> bool:
        """Whether an engine runs here, not only its command."""
        if shutil.which(self._engine) is None:
            return False
        for question in (["compose", "version"], ["info"]):
            try:
                done = subprocess.run(
                    [self._engine, *question], capture_output=True, check=False, timeout=_PROBE_TIMEOUT_S
                )
            except subprocess.TimeoutExpired:
                return False
            if done.returncode:
                return False
        return True

    def start(self, service: Service, site: Site) -> Process | None:
        """Start its container."""
        self._compose(site, "up", "--detach", service.name)
        return None

    def alive(self, service: Service, site: Site, process: Process | None) -> bool:
        """Ask the engine."""
        del process
        return service.name in self._compose(site, "ps", "--services", "--filter", "status=running").split()

    def act(self, action: Action, service: Service, site: Site, process: Process | None) -> None:
        """Tell the engine."""
        del process
        self._compose(site, *_COMMANDS[action], service.name)

    def tail(self, service: Service, site: Site) -> str:
        """Ask the engine for its log."""
        return self._compose(site, "logs", "--no-log-prefix", "--tail", "20", service.name)[
            -TAIL_BYTES:
        ].strip()

    def purge(self, sites: Sequence[Site]) -> None:
        """Remove the project's containers and volumes."""
        if sites:
            self._compose(sites[0], "down", "--volumes")

    def _compose(self, site: Site, *arguments: str) -> str:
        """Run compose on this site's project; the ports go in by a file, beside the caller's own environment."""
        site.home.mkdir(parents=True, exist_ok=True)
        ports = site.home / "ports.env"
        ports.write_text("".join(f"WEIR_PORT_{name.upper()}={port}\n" for name, port in site.ports.items()))
        project = f"weir-{hashlib.sha256(str(site.home.parent.resolve()).encode()).hexdigest()[:8]}"
        done = subprocess.run(
            [
                *(self._engine, "compose", "--file", str(self._file)),
                *("--project-name", project, "--env-file", str(ports), *arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=_ENGINE_TIMEOUT_S,
        )
        if done.returncode:
            raise ResourceError(
                f"{self._engine} compose {arguments[0]} failed: {done.stderr.strip()[-800:]}",
                mend="look at the engine, or say --mode local",
            )
        return done.stdout

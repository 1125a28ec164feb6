"""Services as processes of this machine, from the packages of Debian, Python and Maven."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from deploy.services.process import Process
from deploy.services.runner import TAIL_BYTES, Action, Runner
from deploy.services.service import Service, Site

_STOP_PATIENCE_S = 20.0


class LocalRunner(Runner):
    """One process each, which outlives the command that starts it."""

    mode = "local"

    def require(self, service: Service, site: Site) -> None:
        """Ask the service what it needs."""
        service.require(site.cache)

    def start(self, service: Service, site: Site) -> Process | None:
        """Start its process."""
        return Process.spawn(service.prepare(site), _log(site))

    def alive(self, service: Service, site: Site, process: Process | None) -> bool:
        """Look for its process."""
        del service, site
        return process is not None and process.alive

    def act(self, action: Action, service: Service, site: Site, process: Process | None) -> None:
        """Signal its process and all that this started."""
        del site
        if process is None:
            return
        match action:
            case "stop":
                process.stop(service.stop_signal, _STOP_PATIENCE_S)
            case "kill":
                process.kill()
            case "pause":
                process.pause()
            case "resume":
                process.resume()

    def tail(self, service: Service, site: Site) -> str:
        """Read the file that its output goes to."""
        del service
        try:
            return _log(site).read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def purge(self, sites: Sequence[Site]) -> None:
        """Remove their folders."""
        for site in sites:
            shutil.rmtree(site.home, ignore_errors=True)


def _log(site: Site) -> Path:
    return site.home / "log.txt"

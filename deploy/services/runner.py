"""The two ways to run services: processes of this machine, or a container engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from deploy.services.process import Process
from deploy.services.service import Service, Site

Action = Literal["stop", "kill", "pause", "resume"]
TAIL_BYTES = 2_000


class Runner(Protocol):
    """Runs one service at a site. ``process`` is what ``start`` returned: None for a container."""

    mode: str

    def require(self, service: Service, site: Site) -> None:
        """Return if ``service`` can be run here.

        Raises:
            MissingProgramError: something is not installed; the mend names it.
        """
        ...

    def start(self, service: Service, site: Site) -> Process | None:
        """Run it; it need not be ready yet."""
        ...

    def alive(self, service: Service, site: Site, process: Process | None) -> bool:
        """Whether it runs, ready or not."""
        ...

    def act(self, action: Action, service: Service, site: Site, process: Process | None) -> None:
        """Do ``action`` to it, and return when it is done; its data stay.

        ``stop`` ends it as an operator does and ``kill`` as a crash does; while ``pause`` lasts, connections stay
        open and nothing answers, until ``resume``.
        """
        ...

    def tail(self, service: Service, site: Site) -> str:
        """Return the end of its log."""
        ...

    def purge(self, sites: Sequence[Site]) -> None:
        """Remove the data of ``sites``, on which nothing runs any more."""
        ...

"""Telling of clients that were refused before there was a request, without letting them fill the log."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from tokenweir.telemetry.logs import get_logger

_QUIET_S: Final = 10.0


class Refusals:
    """Counts refusals by reason, and logs each reason at most once in ten seconds."""

    def __init__(self, name: str) -> None:
        self._log = get_logger(name)
        self._told: dict[str, tuple[float, int]] = {}
        self.counts: Counter[str] = Counter()

    def __call__(self, reason: str) -> None:
        """Note a client that was refused."""
        self.counts[reason] += 1
        now = time.monotonic()
        at, before = self._told.get(reason, (-_QUIET_S, 0))
        if now - at >= _QUIET_S:
            clients = self.counts[reason] - before
            self._told[reason] = now, self.counts[reason]
            self._log.warning("client refused by TLS", reason=reason, clients=clients)

    def renewed(self, what: str) -> None:
        """Tell what became of a certificate that was renewed."""
        self._log.warning("tls", what=what)

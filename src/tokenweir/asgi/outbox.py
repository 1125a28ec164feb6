"""Writes of one turn of the event loop, made together at its end.

A write to a socket wakes whoever reads it, which costs more than the write where the reader sleeps on another core.
What is written together wakes them once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized


class Outbox:
    """Keeps the order of what is written through it, and is flushed before anything that is not.

    ``busy`` holds what is being worked on: where that is one alone, there is no company to wait for.
    """

    def __init__(self, busy: Sized) -> None:
        self._busy = busy
        self._waiting: list[tuple[asyncio.WriteTransport, bytes]] = []

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write at once, or once the loop has called what is ready."""
        if not self._waiting:
            if len(self._busy) < 2:  # noqa: PLR2004 - more than one
                transport.write(data)
                return
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append((transport, data))

    def flush(self) -> None:
        """Write what waits; what is for a connection that is closed meanwhile is dropped."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)

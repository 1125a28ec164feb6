"""Open streams of events: how many there are, when they must end, and whose key still counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import Final, Protocol, runtime_checkable

from tokenweir.core.errors import OverloadedError, UnauthorizedError, UnavailableError
from tokenweir.ports.access import Keyring

_LOOK_S: Final = 5.0
_RETRY_NS: Final = 1_000_000_000


@runtime_checkable
class Changing(Protocol):
    """A keyring that says when keys have changed: the event is set then, and replaced by another."""

    changed: asyncio.Event


class Streams:
    """Counts open streams and closes those whose key was revoked or has expired. :meth:`watch` runs beside the door."""

    def __init__(self, keyring: Keyring, *, most: int) -> None:
        self._keyring = keyring
        self._most = most
        self._open: dict[str, set[Callable[[], None]]] = {}
        self.events = 0
        """Open event streams."""
        self.sockets = 0
        """Open WebSockets."""

    def room(self) -> None:
        """Raise OverloadedError when as many are open as may be."""
        if self.events + self.sockets >= self._most:
            raise OverloadedError(
                f"{self._most} streams are open, as many as may be",
                mend="close one, or try again shortly",
                retry_after_ns=_RETRY_NS,
            )

    @contextlib.contextmanager
    def counted(self, key: str, close: Callable[[], None], *, socket: bool = False) -> Generator[None]:
        """Count a stream while the block runs; ``close`` is called when its key counts no more."""
        self.room()
        holders = self._open.setdefault(key, set())
        holders.add(close)
        self._add(1, socket=socket)
        try:
            yield
        finally:
            self._add(-1, socket=socket)
            holders.discard(close)
            if not holders:
                self._open.pop(key, None)

    def _add(self, number: int, *, socket: bool) -> None:
        if socket:
            self.sockets += number
        else:
            self.events += number

    async def watch(self) -> None:
        """Look whenever keys have changed, and now and then for those that expire; until cancelled."""
        while True:
            changed = self._keyring.changed if isinstance(self._keyring, Changing) else asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await changed.wait()
            await self.look()

    def close(self) -> None:
        """Close all: whoever reads them comes back to another instance, or to this one's successor."""
        for holders in list(self._open.values()):
            for close in list(holders):
                close()

    async def look(self) -> None:
        """Close the streams of keys that do not count any more."""
        for key, holders in list(self._open.items()):
            try:
                if self._keyring.cached(key) is None:
                    await self._keyring.authenticate(key)
            except UnauthorizedError:
                for close in list(holders):
                    close()
            except UnavailableError:
                # Nobody can say; the next look may.
                return

"""A cache of callers before the directory: most requests wait for nothing, and a revoked key is out within a second."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import Final, NamedTuple

from tokenweir.access.directory import Directory
from tokenweir.access.keys import digest_of, id_of
from tokenweir.core.clock import Clock, SystemClock
from tokenweir.core.errors import UnauthorizedError, UnavailableError, WeirError
from tokenweir.ports.access import Caller

LOOK_S: Final = 0.4
"""How often the directory's revision is looked at; a change empties the cache."""
STALE_NS: Final = 900_000_000
"""A cache whose revision was not confirmed for this long is not believed: revocation takes below a second."""
_MOST: Final = 50_000
_REFUSED_NS: Final = 500_000_000


class _Entry(NamedTuple):
    caller: Caller | None
    until_ns: int


class CachedKeyring:
    """Keyed by digest, so that no key is held in memory. :meth:`watch` runs beside the server."""

    def __init__(self, directory: Directory, clock: Clock | None = None) -> None:
        self._directory = directory
        self._clock = clock or SystemClock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._revision = -1
        self._confirmed_ns = -STALE_NS
        self._asking = asyncio.Semaphore(4)
        self._asked: dict[bytes, asyncio.Future[Caller]] = {}
        self.changed = asyncio.Event()
        """Set when the directory is seen to have changed, and then replaced: open sockets look at their key again."""

    def cached(self, key: str) -> Caller | None:
        """Return the caller if the key was seen a moment ago, without waiting."""
        if self._clock.monotonic_ns() - self._confirmed_ns > STALE_NS:
            return None
        entry = self._entries.get(digest_of(key))
        if entry is None or entry.caller is None or self._clock.wall_ns() >= entry.until_ns:
            return None
        return entry.caller

    async def authenticate(self, key: str) -> Caller:
        """Return the caller. Raises UnauthorizedError, or UnavailableError where the directory cannot be asked."""
        caller = self.cached(key)
        if caller is not None:
            return caller
        digest = digest_of(key)
        refused = self._entries.get(digest)
        if refused is not None and refused.caller is None and self._clock.wall_ns() < refused.until_ns:
            raise _refusal()
        asked = self._asked.get(digest)
        if asked is None:
            return await self._ask_for_all(digest, id_of(key))
        await asyncio.wait((asked,))
        # Whoever asked may have been cancelled amid it.
        return await self.authenticate(key) if asked.cancelled() else asked.result()

    async def _ask_for_all(self, digest: bytes, key_id: bytes) -> Caller:
        """Ask the directory once for all who show the same key meanwhile."""
        asked = self._asked[digest] = asyncio.get_running_loop().create_future()
        try:
            caller = await self._ask(digest, key_id)
        except WeirError as error:
            asked.set_exception(error)
            # It is raised here; nobody else need be there to take it.
            asked.exception()
            raise
        except BaseException:
            asked.cancel()
            raise
        else:
            asked.set_result(caller)
            return caller
        finally:
            if self._asked.get(digest) is asked:
                del self._asked[digest]

    async def _ask(self, digest: bytes, key_id: bytes) -> Caller:
        revision = self._revision
        found = await self._find(key_id)
        caller = None
        until_ns = self._clock.wall_ns() + _REFUSED_NS
        if found is not None and secrets.compare_digest(digest, found[0]):
            caller = found[1]
            until_ns = found[2] if found[2] is not None else 2**63
        if revision == self._revision:
            # Otherwise the directory has changed meanwhile, and what was found may be old already.
            self._entries[digest] = _Entry(caller, until_ns)
            while len(self._entries) > _MOST:
                self._entries.popitem(last=False)
        if caller is None:
            raise _refusal()
        return caller

    async def owner(self, key: bytes) -> Caller | None:
        """Return the caller of a key by its id; ``None``: it counts no more. Raises UnavailableError."""
        found = await self._find(key)
        return None if found is None else found[1]

    async def _find(self, key: bytes) -> tuple[bytes, Caller, int | None] | None:
        try:
            # A flood of unknown keys waits here, and not in threads.
            async with self._asking:
                return await asyncio.to_thread(self._directory.find, key)
        except WeirError as error:
            raise UnavailableError(f"the directory of keys cannot be read: {error.message}") from error

    async def look(self) -> None:
        """Look at the directory's revision, and empty the cache if it has changed. Raises UnavailableError."""
        before = self._clock.monotonic_ns()
        try:
            revision = await asyncio.to_thread(self._directory.revision)
        except WeirError as error:
            raise UnavailableError(f"the directory of keys cannot be read: {error.message}") from error
        if revision != self._revision:
            self._revision = revision
            self._entries.clear()
            # What is being asked may have been read before the change.
            self._asked.clear()
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()
        self._confirmed_ns = before

    async def watch(self) -> None:
        """Look again and again, until cancelled. While the directory cannot be read, no cached key is believed."""
        while True:
            try:
                await self.look()
            except UnavailableError:
                self._revision = -1
            await asyncio.sleep(LOOK_S)


def _refusal() -> UnauthorizedError:
    return UnauthorizedError(
        "the API key is unknown, expired or revoked", mend="make one with weir keys create, or ask for one"
    )

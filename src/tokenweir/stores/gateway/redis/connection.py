"""Redis, and whether its counters can be trusted: under an epoch that belongs to this run of the server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from tokenweir.core.errors import ConfigError, UnavailableError
from tokenweir.stores.gateway.redis.scripts import BUILDING, GUARDED

_TIMEOUT_S: Final = 5.0


class _Client(Protocol):
    def execute_command(self, *args: object) -> Awaitable[object]: ...

    async def aclose(self) -> None: ...


class LostEpochError(UnavailableError):
    """The counters are missing, or may be older than what was counted; they are counted anew first."""


class RedisConnection:
    """A pool of connections to ``redis://…``, and the scripts.

    An epoch names the run of the server in which its counters were counted. A restarted server may have lost the last
    second, so its counters stand only after they are counted anew. That it was restarted shows in the scripts: it knows
    none, and they are given to it only after the epoch was found to be of its run.
    """

    def __init__(self, url: str, *, connections: int = 8, prefix: str = "weir") -> None:
        try:
            pool = cast("Any", redis.asyncio.BlockingConnectionPool).from_url(
                url,
                max_connections=connections,
                timeout=_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise ConfigError(
                f"the quota URL {url!r} is malformed: {error}", mend="write redis://HOST:PORT/NUMBER"
            ) from error
        self._client = cast("_Client", redis.asyncio.Redis(connection_pool=pool))
        self._pool = pool
        self._space = f"{prefix} {pool.connection_kwargs.get('db', 0)}"
        self.prefix = f"{{{prefix}}}:"
        self.epoch_key = f"{self.prefix}epoch"
        self.name = url.rpartition("@")[2]
        self.epoch: str | None = None
        self._scripts: dict[str, tuple[str, str]] = {}
        self._adopting = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._pool.disconnect()

    async def command(self, *args: object) -> object:
        """Run one command. Raises UnavailableError."""
        try:
            return await self._client.execute_command(*args)
        except (RedisError, OSError, TimeoutError) as error:
            raise self._unavailable(error) from error

    async def look(self) -> None:
        """See that the server keeps what it is given. Raises UnavailableError, ConfigError."""
        memory = await self.info("memory")
        if memory.get("maxmemory", "0") != "0" and memory.get("maxmemory_policy") != "noeviction":
            raise ConfigError(
                f"the quota store {self.name!r} may evict counters: its policy is"
                f" {memory.get('maxmemory_policy')!r}",
                mend="set maxmemory-policy noeviction",
            )

    async def info(self, section: str) -> Mapping[str, str]:
        """Return a section of INFO."""
        found = await self.command("INFO", section)
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in cast("dict[object, object]", found).items()}
        lines = cast("bytes", found).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def run_id(self) -> str:
        """Return the name of this run of the server."""
        return (await self.info("server"))["run_id"]

    async def adopt(self) -> str:
        """Return the epoch that stands, and give the server the scripts of it; the caller sets :attr:`epoch`.

        Raises:
            LostEpochError: there is none, or it belongs to an earlier run of the server.
            UnavailableError: the server cannot be reached.
        """
        async with self._adopting:
            found = await self.command("GET", self.epoch_key)
            epoch = cast("bytes", found).decode() if found is not None else ""
            if not epoch or epoch.partition(":")[2] != await self.run_id():
                self.epoch = None
                raise LostEpochError(
                    f"the counters of the quota store {self.name!r} are not there",
                    mend="they are counted anew from the ledger; or run weir quotas rebuild",
                )
            await self._load(epoch, GUARDED)
            return epoch

    async def begin(self, token: str) -> None:
        """Forget the epoch and give the server the scripts of a rebuild."""
        self.epoch = None
        await self.command("SET", f"{self.prefix}building", token, "EX", 3600)
        await self.command("DEL", self.epoch_key)
        await self._load(token, BUILDING)

    async def _load(self, epoch: str, scripts: Mapping[str, str]) -> None:
        for name, body in scripts.items():
            text = f"-- {self._space} {epoch}\n{body}"
            await self.command("SCRIPT", "LOAD", text)
            self._scripts[name] = (hashlib.sha1(text.encode()).hexdigest(), epoch)  # noqa: S324 - Redis names scripts so

    async def call(self, script: str, *args: object) -> object:
        """Run a script under the epoch that was adopted.

        Raises:
            LostEpochError: the epoch is not that any more.
            UnavailableError: the server cannot be reached, and may have run it or not.
        """
        known = self._scripts.get(script)
        if known is None:
            raise LostEpochError(f"the counters of the quota store {self.name!r} were not looked at")
        sha, epoch = known
        try:
            return await self._client.execute_command("EVALSHA", sha, 1, self.epoch_key, epoch, *args)
        except NoScriptError as error:
            raise self._lost() from error
        except ResponseError as error:
            if str(error).startswith("NOEPOCH"):
                raise self._lost() from error
            raise self._unavailable(error) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise self._unavailable(error) from error

    def _lost(self) -> LostEpochError:
        return LostEpochError(
            f"the counters of the quota store {self.name!r} are not those that were",
            mend="they are counted anew from the ledger; or run weir quotas rebuild",
        )

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"the quota store {self.name!r} cannot be used: {error or type(error).__name__}",
            mend="see that Redis runs and can be reached",
        )

"""Looking after endpoints: each is asked now and then whether it can answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from tokenweir.core.errors import EndpointError
from tokenweir.gateway.endpoints.pool import Endpoint, Pool
from tokenweir.ports.backend import Control
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.endpoints")
_WAIT_S: Final = 5.0
_OK: Final = 200


class HealthWatch:
    """Asks every endpoint, at once and then each ``interval_ns``. ``controls`` are the side doors by kind."""

    def __init__(self, pool: Pool, controls: Mapping[str, Control], *, interval_ns: int) -> None:
        self._pool = pool
        self._controls = controls
        self._interval_ns = interval_ns

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_ns / 1e9)

    async def look(self) -> None:
        """Ask every endpoint once."""
        async with asyncio.TaskGroup() as group:
            for endpoint in self._pool.endpoints:
                group.create_task(self._ask(endpoint))

    async def _ask(self, endpoint: Endpoint) -> None:
        reason = ""
        try:
            async with asyncio.timeout(_WAIT_S):
                if endpoint.rpc is not None:
                    reason = await endpoint.rpc.health()
                elif (status := await self._status(endpoint)) != _OK:
                    reason = f"it answers {status}"
        except (EndpointError, TimeoutError) as error:
            reason = str(error) or f"no answer within {_WAIT_S:g} s"
        if endpoint.well != (not reason):
            endpoint.well = not reason
            _LOG.warning(
                "endpoint down" if reason else "endpoint up", endpoint=endpoint.facts.name, reason=reason
            )

    async def _status(self, endpoint: Endpoint) -> int:
        asked = self._controls[endpoint.facts.kind].health()
        origin = endpoint.client.origin
        lines = [
            f"{asked.method} {origin.base}{asked.path} HTTP/1.1",
            f"host: {origin.authority}",
            "accept-encoding: identity",
            f"content-length: {len(asked.body)}",
            *(f"{name}: {value}" for name, value in asked.headers),
        ]
        if endpoint.facts.authorization:
            lines.append(f"authorization: {endpoint.facts.authorization}")
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        async with await endpoint.client.send(head, asked.body) as answer:
            await answer.whole()
            return answer.status

"""The asynchronous client, driven from outside a loop, so that one test asks both clients the same."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self, TypeAlias

from tokenweir.client import (
    AsyncClient,
    AsyncSocket,
    Batch,
    BatchItem,
    BatchResult,
    Client,
    Options,
    RequestStatus,
    Submitted,
)
from tokenweir.core.events import Event


class DrivenSocket:
    """The calls of :class:`Socket`, made by an :class:`AsyncSocket`."""

    def __init__(self, runner: asyncio.Runner, socket: AsyncSocket) -> None:
        self._runner = runner
        self._socket = socket

    def submit(self, *, idempotency_key: str | None = None, follow: bool = True, **body: object) -> Submitted:
        submitted = self._socket.submit(idempotency_key=idempotency_key, follow=follow, **body)
        return self._runner.run(submitted)

    def follow(self, request: str | Submitted, *, after: int = -1) -> None:
        self._socket.follow(request, after=after)

    def cancel(self, request: str | Submitted) -> None:
        self._runner.run(self._socket.cancel(request))

    def events(self) -> Iterator[tuple[str, Event]]:
        events = self._socket.events()

        async def following() -> tuple[str, Event] | None:
            return await anext(events, None)

        while (event := self._runner.run(following())) is not None:
            yield event

    def stream(self, request: str | Submitted) -> Iterator[Event]:
        events = self._socket.stream(request)

        async def following() -> Event | None:
            return await anext(events, None)

        while (event := self._runner.run(following())) is not None:
            yield event

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._socket.aclose())


class DrivenClient:
    """The calls of :class:`Client`, made by an :class:`AsyncClient`."""

    def __init__(self, url: str | Sequence[str], key: str, *, options: Options | None = None) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, key, options=options)

    def submit(self, *, idempotency_key: str | None = None, **body: object) -> Submitted:
        return self._runner.run(self._client.submit(idempotency_key=idempotency_key, **body))

    def status(self, request: str | Submitted) -> RequestStatus:
        return self._runner.run(self._client.status(request))

    def cancel(self, request: str | Submitted) -> RequestStatus:
        return self._runner.run(self._client.cancel(request))

    def wait(self, request: str | Submitted, *, timeout: str | int | None = None) -> RequestStatus:
        return self._runner.run(self._client.wait(request, timeout=timeout))

    def stream(self, request: str | Submitted, *, after: int = -1) -> Iterator[Event]:
        events = self._client.stream(request, after=after)

        async def following() -> Event | None:
            return await anext(events, None)

        while (event := self._runner.run(following())) is not None:
            yield event

    def history(self, *, page: int = 50) -> Iterator[RequestStatus]:
        async def whole() -> list[RequestStatus]:
            return [status async for status in self._client.history(page=page)]

        return iter(self._runner.run(whole()))

    def batch(
        self, bodies: Iterable[Mapping[str, object]], *, at_once: int = 64, key: str | None = None
    ) -> Iterator[BatchItem]:
        async def whole() -> list[BatchItem]:
            return [item async for item in self._client.batch(bodies, at_once=at_once, key=key)]

        return iter(self._runner.run(whole()))

    def submit_batch(
        self,
        bodies: Iterable[Mapping[str, object]],
        *,
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Batch:
        return self._runner.run(self._client.submit_batch(bodies, metadata=metadata, key=key))

    def batch_status(self, batch: str | Batch) -> Batch:
        return self._runner.run(self._client.batch_status(batch))

    def wait_batch(self, batch: str | Batch, *, timeout: str | int | None = None) -> Batch:
        return self._runner.run(self._client.wait_batch(batch, timeout=timeout))

    def cancel_batch(self, batch: str | Batch) -> Batch:
        return self._runner.run(self._client.cancel_batch(batch))

    def batch_results(self, batch: str | Batch) -> list[BatchResult]:
        return self._runner.run(self._client.batch_results(batch))

    def socket(self) -> DrivenSocket:
        return DrivenSocket(self._runner, self._client.socket())

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


AnyClient: TypeAlias = Client | DrivenClient
KINDS: Mapping[str, type[Client | DrivenClient]] = {"Client": Client, "AsyncClient": DrivenClient}


@contextmanager
def opened(
    kind: str, url: str | Sequence[str], key: str, options: Options | None = None
) -> Generator[AnyClient]:
    """Give a client of a kind."""
    client = KINDS[kind](url, key, options=options)
    try:
        yield client
    finally:
        client.close()

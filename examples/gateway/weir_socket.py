"""Many requests over one WebSocket with `tokenweir.client`, from tasks of asyncio; set WEIR_URL and WEIR_KEY."""

from __future__ import annotations

import asyncio
import os

from tokenweir.client import AsyncClient, AsyncSocket
from tokenweir.core.events import text

URL = os.environ.get("WEIR_URL", "http://127.0.0.1:8080")
MODEL = os.environ.get("WEIR_MODEL", "good")


async def ask(socket: AsyncSocket, question: str) -> None:
    """Ask, and print the answer once all of it has come."""
    request = await socket.submit(
        model=MODEL, mode="stream", max_tokens=10, messages=[{"role": "user", "content": question}]
    )
    # Events come once each and in order; a lost connection is made again, and goes on where it stopped.
    events = [event async for event in socket.stream(request)]
    print(request.request_id, repr(text(events)))


async def main() -> None:
    """Ask three questions at once over one connection."""
    async with (
        AsyncClient(URL, os.environ["WEIR_KEY"]) as client,
        client.socket() as socket,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(3):
            tasks.create_task(ask(socket, f"What is {number} + {number}?"))


asyncio.run(main())

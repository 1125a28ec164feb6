"""Stopping a server: what Ctrl-C and SIGTERM mean, and which error of many is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Final, cast

from tokenweir.core.errors import CancelledError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """What Ctrl-C and SIGTERM mean: before the server is ready the end, then draining, then the end."""

    def __init__(self) -> None:
        self.asked = 0
        self.once = asyncio.Event()
        self.twice = asyncio.Event()
        self._starting: asyncio.Task[object] | None = None

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        """Listen for signals while the block runs."""
        loop = asyncio.get_running_loop()
        for one in _SIGNALS:
            loop.add_signal_handler(one, self._on_signal)
        try:
            yield
        finally:
            for one in _SIGNALS:
                loop.remove_signal_handler(one)

    @contextlib.asynccontextmanager
    async def cancels(self) -> AsyncGenerator[None]:
        """Let a signal cancel the present task until :meth:`ready`."""
        self._starting = task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if self.asked and task is not None and task.uncancel() == 0:
                raise CancelledError("stopped by the user") from None
            raise

    def ready(self) -> None:
        """From now on a signal drains."""
        self._starting = None

    def _on_signal(self) -> None:
        self.asked += 1
        if self._starting is not None:
            self._starting.cancel()
        (self.once if self.asked == 1 else self.twice).set()


def end_with_starter() -> None:
    """Stop this process as SIGTERM does once its standard input ends, for then whoever started it is gone."""
    threading.Thread(target=_follow, args=(sys.stdin.fileno(),), name="tether", daemon=True).start()


def _follow(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def first_of(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group, which says why the others came."""
    first = group.exceptions[0]
    return first_of(cast("ExceptionGroup[Exception]", first)) if isinstance(first, ExceptionGroup) else first

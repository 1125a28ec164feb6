"""A set of services that belongs to one test module, which may do to them what no other test would survive."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self, cast

import redis
from deploy.services.group import OWN_HOMES, Services, choose_runner
from deploy.services.process import Process
from deploy.services.redis import flush

from tokenweir.core.errors import WeirError

_SETTLED_TIMEOUT_S = 20.0
_PAUSE_S = 0.02


def connect_redis(url: str, **options: object) -> Any:  # noqa: ANN401 - its methods take unknown types
    """Return a client of Redis, whose types are only partly known."""
    return cast("Any", redis.Redis).from_url(url, **options)


class OwnServices:
    """``start`` what is needed, then break it. A service keeps its URL and its data from a stop to the next start."""

    def __init__(self, absent: Callable[[str, WeirError], NoReturn]) -> None:
        self._absent = absent
        self._services = Services(OWN_HOMES / uuid.uuid4().hex[:8], runner=choose_runner("auto"))
        self._user = Process.of(os.getpid())

    def start(self, *names: str) -> dict[str, str]:
        """Return the URLs of ``names`` once each is ready; those that run already stay as they are."""
        outcome = self._services.start(names, user=self._user)
        for name, error in outcome.errors.items():
            self._absent(name, error)
        return {name: urls[name] for name, urls in outcome.urls.items()}

    def stop(self, name: str) -> None:
        """End the service as an operator does, and return when it has ended."""
        self._services.act("stop", name)

    def kill(self, name: str) -> None:
        """End the service as a crash does (SIGKILL), and return when it is gone."""
        self._services.act("kill", name)

    def pause(self, name: str) -> None:
        """Let the service hang: connections stay open and nothing answers."""
        self._services.act("pause", name)

    def resume(self, name: str) -> None:
        """Let a paused service go on."""
        self._services.act("resume", name)

    def flush_redis(self) -> None:
        """Empty every database of Redis."""
        flush(self._services.site("redis").ports)

    def settle(self, queue: str) -> None:
        """Return when RabbitMQ would know a quorum ``queue`` again after a kill.

        Its messages are on disk once they are confirmed; that it exists, up to a second after it was declared, and a
        broker killed before has a queue that answers nobody.
        """
        known = next(self._services.site("rabbitmq").home.glob("data/*/quorum/*/names.dets"), None)
        if known is None:
            # A container's files cannot be seen; a stop writes them.
            self.stop("rabbitmq")
            self.start("rabbitmq")
            return
        end = time.monotonic() + _SETTLED_TIMEOUT_S
        while queue.encode() not in known.read_bytes():
            if time.monotonic() >= end:
                raise AssertionError(f"queue {queue!r} is not in {known}")
            time.sleep(_PAUSE_S)

    def log(self, name: str) -> str:
        """Return the end of the service's log."""
        return self._services.tail(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._services.release(self._user)
        shutil.rmtree(self._services.home, ignore_errors=True)

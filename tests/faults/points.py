"""The moments at which a process may be killed: before or after a call of one of its ports.

They are the borders of what outlives a process: between two of them nothing becomes durable, so that a kill anywhere
else is like one at the border before it. The product knows nothing of them: a process that is to die is told by its
launcher.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Literal, NamedTuple

from tokenweir.core.events import Completed, Failed, Token

_STORES = "tokenweir.stores.gateway"
REQUESTS, RESULTS = "inference_requests", "inference_results"


def _always(_owner: Any, _args: tuple[Any, ...]) -> bool:  # noqa: ANN401 - of any port
    return True


def _queue(name: str) -> Callable[[Any, tuple[Any, ...]], bool]:
    return lambda owner, _args: owner.name == name


def _holds(*kinds: type) -> Callable[[Any, tuple[Any, ...]], bool]:
    return lambda _owner, args: any(isinstance(event, kinds) for append in args[0] for event in append.events)


class Point(NamedTuple):
    """A border: a call of ``owner.method`` that ``fits``, the ``nth`` of them, before or after it is carried out."""

    name: str
    module: str
    owner: str
    method: str
    when: Literal["before", "after"]
    fits: Callable[[Any, tuple[Any, ...]], bool] = _always
    nth: int = 1


def _point(name: str, place: str, when: Literal["before", "after"], **more: Any) -> Point:  # noqa: ANN401
    module, owner, method = place.split(":")
    return Point(name, f"{_STORES}.{module}", owner, method, when, **more)


_INTAKE = "postgresql.requests:PostgresqlRequests"
_QUEUE = "rabbitmq.queue:RabbitQueue"
_EVENTS = "kafka.eventlog:KafkaEventLog"
_LEDGER = "postgresql.ledger:PostgresqlLedger"

GATEWAY = (
    _point("before tokens are set aside", "redis.quota:RedisQuota:reserve_accepted", "before"),
    _point("set aside, not written", f"{_INTAKE}:write", "before"),
    _point("written, not answered", f"{_INTAKE}:write", "after"),
    _point("accepted, not queued", f"{_QUEUE}:publish", "before", fits=_queue(REQUESTS)),
    _point("queued, not noted", f"{_INTAKE}:published", "before"),
    _point("queued and noted", f"{_INTAKE}:published", "after"),
)
WORKER = (
    _point("job in hand, not claimed", f"{_INTAKE}:claim", "before"),
    _point("claimed, not asked", f"{_INTAKE}:claim", "after"),
    _point("answered, no token written", f"{_EVENTS}:append", "before", fits=_holds(Token)),
    _point("amid the tokens", f"{_EVENTS}:append", "after", fits=_holds(Token), nth=3),
    _point("before the end is written", f"{_EVENTS}:append", "before", fits=_holds(Completed, Failed)),
    _point("end written, nobody told", f"{_EVENTS}:append", "after", fits=_holds(Completed, Failed)),
    _point("told, job not acknowledged", f"{_QUEUE}:acknowledge", "before", fits=_queue(REQUESTS)),
)
COLLECTOR = (
    _point("end in hand, not read", f"{_INTAKE}:find", "before"),
    _point("read, not in the ledger", f"{_LEDGER}:settle", "before"),
    _point("in the ledger, not counted", f"{_LEDGER}:settle", "after"),
    _point("counted, log not dropped", f"{_EVENTS}:forget", "before"),
    _point("done, not acknowledged", f"{_QUEUE}:acknowledge", "before", fits=_queue(RESULTS)),
)
POINTS = {
    f"{role}: {point.name}": point
    for role, points in (("gateway", GATEWAY), ("worker", WORKER), ("collector", COLLECTOR))
    for point in points
}


def arm(name: str) -> None:
    """Have this process killed (SIGKILL) by itself when it comes to the point of that name; it says so before."""
    point = POINTS[name]
    owner = getattr(import_module(point.module), point.owner)
    inner: Callable[..., Awaitable[Any]] = getattr(owner, point.method)
    numbers = itertools.count(1)

    async def watched(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the port's
        here = point.fits(self, args) and next(numbers) == point.nth
        if here and point.when == "before":
            _die(name)
        found = await inner(self, *args, **kwargs)
        if here:
            _die(name)
        return found

    setattr(owner, point.method, watched)


def _die(name: str) -> None:
    os.write(1, f"killed at {name}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)

"""The handlers of OpenAI's direct routes, of the list of models, and of the probes."""

from __future__ import annotations

from collections.abc import Sequence

from tokenweir.asgi.call import Call
from tokenweir.core.errors import NotFoundError, OverloadedError
from tokenweir.gateway.direct.relay import Sink
from tokenweir.gateway.doors import processed, repeatable
from tokenweir.gateway.doors.brownout_metrics import state_of
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.headers import degraded
from tokenweir.gateway.doors.metrics import CONTENT_TYPE


class CallSink:
    """Lets an answer go to the caller of an HTTP request."""

    __slots__ = ("_call", "_more")

    def __init__(self, call: Call, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._call = call
        self._more = more
        """Headers beside those of the answer."""

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the head."""
        self._call.streaming = any(name == b"cache-control" for name, _ in headers)
        await self._call.begin(status, [*headers, *self._more])

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send all of an answer."""
        await self._call.answer_whole(status, [*headers, *self._more], body)

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body."""
        await self._call.write(piece)

    async def end(self, piece: bytes = b"") -> None:
        """Send the last piece."""
        await self._call.end_stream(piece)


async def direct(door: Door, call: Call) -> None:
    """Relay a request to an endpoint; when the caller goes, so does the request at the endpoint."""
    caller = await door.caller(call, "infer")
    raw = await door.body(call)
    if door.in_flight >= door.limits.streams:
        raise OverloadedError(
            f"{door.in_flight} requests are being answered, as many as may be",
            mend="try again shortly",
            retry_after_ns=1_000_000_000,
        )
    repeats = call.header(b"idempotency-key") is not None
    passed, body = None, raw
    if door.line is not None:
        passed = await processed.direct(door.line, call, caller, raw, relayed=not repeats)
        if passed.asked.ready is not None:
            await processed.tell(door, call, caller, passed, CallSink(call))
            return
        body = passed.raw
    lessened = door.lessen(caller, body, queued=False)
    if lessened.queue is not None or repeats:
        await repeatable.answer(door, call, caller, raw, lessened)
        return
    request = RequestId(call.number)
    sink: Sink = CallSink(call, degraded(lessened.what))
    if passed is not None:
        sink = passed.asked.around(sink, degraded=bool(lessened.what))
    door.in_flight += 1
    try:
        exchange = await call.unless_gone(
            door.direct.relay(caller, request.raw, call.path.encode(), lessened.raw, sink)
        )
    finally:
        door.in_flight -= 1
    if exchange.count is not None:
        door.metrics.measures.charged(exchange.body.model, exchange.count)


async def models(door: Door, call: Call) -> None:
    """List the models that this key may ask."""
    caller = await door.caller(call, "infer")
    listed = [_model(door, name) for name in door.direct.pool.models if caller.may_ask(name)]
    await call.answer_json({"object": "list", "data": listed})


async def model(door: Door, call: Call) -> None:
    """Describe one model."""
    caller = await door.caller(call, "infer")
    name = call.part
    door.direct.pool.need(name)
    if not caller.may_ask(name):
        raise NotFoundError(f"the model {name!r} does not exist", mend="GET /v1/models lists those there are")
    await call.answer_json(_model(door, name))


def _model(door: Door, name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": door.started_s, "owned_by": "tokenweir"}


async def health(door: Door, call: Call) -> None:
    """Say that the process lives, and how its endpoints stand."""
    endpoints = [
        {"name": state.name, "model": state.model, "up": state.well, "in_flight": state.in_flight}
        for state in door.direct.pool.states()
    ]
    told: dict[str, object] = {"status": "draining" if door.draining else "ok", "endpoints": endpoints}
    if door.brownout is not None:
        told["brownout"] = state_of(door.brownout)
    await call.answer_json(told)


async def ready(door: Door, call: Call) -> None:
    """Say whether requests should come here.

    Not while it drains, not without an endpoint that is up, and not while nothing can be charged.
    """
    # A door that has some paths alone asks no endpoint.
    is_ready = (
        not door.draining
        and not door.direct.settler.away
        and (bool(door.only) or any(state.well for state in door.direct.pool.states()))
    )
    await call.answer_json({"ready": is_ready}, status=200 if is_ready else 503)


async def metrics(door: Door, call: Call) -> None:
    """Give the counters to Prometheus."""
    if door.queued is not None:
        await door.queued_metrics.look(door.queued, door.streams)
        door.pipeline_metrics.look("worker", door.queued.line)
        door.pipeline_metrics.look("collector", door.queued.ends.line)
    door.pipeline_metrics.look("gateway", door.line)
    if door.brownout is not None:
        door.brownout_metrics.look(door.brownout)
    if door.batches is not None:
        await door.batch_metrics.look(door.batches)
    await door.metrics.reservations(door.quota)
    body = door.metrics.render(
        door.direct.pool, in_flight=door.in_flight, unsettled=door.direct.settler.waiting
    )
    await call.answer(200, body, kind=CONTENT_TYPE)

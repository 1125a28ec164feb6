"""Events of the core, into messages and back."""

from __future__ import annotations

from typing import Final, Literal, assert_never, cast

import msgspec

from tokenweir.core.errors import ProtocolError
from tokenweir.core.events import (
    Accepted,
    Cancelled,
    Completed,
    Degraded,
    Event,
    Failed,
    Queued,
    Started,
    Token,
    TokenLogprob,
    Usage,
)
from tokenweir.core.requests import Json
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.requests import from_call, to_call

_COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "recompiles",
    "drafted_tokens",
    "accepted_tokens",
)


def to_event(event: Event) -> pb.Event:
    """Return the message for an event. Vectors do not go this way: they have a method of their own."""
    if type(event) is Token:
        return pb.Event(seq=event.seq, token=_to_token(event))
    made = pb.Event(seq=event.seq)
    match event:
        case Accepted():
            made.accepted.CopyFrom(pb.Accepted(request_id=event.request_id))
        case Queued():
            made.queued.CopyFrom(pb.Queued())
        case Started():
            started = pb.Started(attempt=event.attempt, upstream_id=event.upstream_id, model=event.model)
            made.started.CopyFrom(started)
        case Token():
            made.token.CopyFrom(_to_token(event))
        case Usage():
            made.usage.CopyFrom(_to_usage(event))
        case Degraded():
            made.degraded.CopyFrom(pb.Degraded(what=event.what))
        case Completed():
            data = msgspec.json.encode(event.data).decode() if event.data else ""
            made.completed.CopyFrom(pb.Completed(finish_reason=event.finish_reason, data_json=data))
        case Failed():
            made.failed.CopyFrom(_to_failed(event))
        case Cancelled():
            made.cancelled.CopyFrom(pb.Cancelled())
        case _:
            assert_never(event)
    return made


def from_event(made: pb.Event) -> Event:
    """Return the event of a message. Raises ProtocolError for a message that holds none that is known."""
    seq = made.seq
    found: Event
    match made.WhichOneof("event"):
        case "token":
            found = _from_token(seq, made.token)
        case "accepted":
            found = Accepted(seq=seq, request_id=made.accepted.request_id)
        case "queued":
            found = Queued(seq=seq)
        case "started":
            started = made.started
            found = Started(
                seq=seq, attempt=started.attempt, upstream_id=started.upstream_id, model=started.model
            )
        case "usage":
            found = _from_usage(seq, made.usage)
        case "degraded":
            found = Degraded(seq=seq, what=made.degraded.what)
        case "completed":
            found = _from_completed(seq, made.completed)
        case "failed":
            found = _from_failed(seq, made.failed)
        case "cancelled":
            found = Cancelled(seq=seq)
        case other:
            raise ProtocolError(
                f"the event {other!r} is not known", mend="use the same version on both sides"
            )
    return found


def _to_token(event: Token) -> pb.Token:
    made = pb.Token(text=event.text, reasoning=event.reasoning, index=event.index)
    if event.count is not None:
        made.count = event.count
    if event.sent_ns is not None:
        made.sent_ns = event.sent_ns
    if event.tool_calls:
        made.tool_calls.extend([to_call(call) for call in event.tool_calls])
    for one in event.logprobs:
        top = [pb.Alternative(token=token, logprob=logprob) for token, logprob in one.top]
        made.logprobs.append(pb.TokenLogprob(token=one.token, logprob=one.logprob, top=top))
    return made


def _from_token(seq: int, made: pb.Token) -> Token:
    return Token(
        seq=seq,
        text=made.text,
        reasoning=made.reasoning,
        tool_calls=tuple(from_call(call) for call in made.tool_calls),
        count=made.count if made.HasField("count") else None,
        index=made.index,
        sent_ns=made.sent_ns if made.HasField("sent_ns") else None,
        logprobs=tuple(
            TokenLogprob(
                token=one.token,
                logprob=one.logprob,
                top=tuple((other.token, other.logprob) for other in one.top),
            )
            for one in made.logprobs
        ),
    )


def _to_usage(event: Usage) -> pb.Usage:
    made = pb.Usage(source=event.source, timings_ns=event.timings_ns)
    for name in _COUNTS:
        value: int | None = getattr(event, name)
        if value is not None:
            setattr(made, name, value)
    return made


def _from_usage(seq: int, made: pb.Usage) -> Usage:
    counts = {name: getattr(made, name) for name in _COUNTS if made.HasField(name)}
    return Usage(
        seq=seq,
        **counts,
        source=cast("Literal['server', 'tokenizer', 'estimate']", made.source or "server"),
        timings_ns=dict(made.timings_ns),
    )


def _from_completed(seq: int, made: pb.Completed) -> Completed:
    try:
        data = msgspec.json.decode(made.data_json, type=dict[str, Json]) if made.data_json else {}
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the data of a completed event are no JSON object: {error}") from error
    return Completed(seq=seq, finish_reason=made.finish_reason, data=data)


def _to_failed(event: Failed) -> pb.Failed:
    made = pb.Failed(kind=event.kind, message=event.message, retryable=event.retryable)
    if event.status is not None:
        made.status = event.status
    if event.retry_after_ns is not None:
        made.retry_after_ns = event.retry_after_ns
    return made


def _from_failed(seq: int, made: pb.Failed) -> Failed:
    return Failed(
        seq=seq,
        kind=made.kind,
        message=made.message,
        status=made.status if made.HasField("status") else None,
        retryable=made.retryable,
        retry_after_ns=made.retry_after_ns if made.HasField("retry_after_ns") else None,
    )

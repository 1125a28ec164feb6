"""Errors as gRPC statuses, with the typed detail beside them."""

from __future__ import annotations

from typing import Final

import grpc

from tokenweir.asgi.problems import FailedError, problem
from tokenweir.core.errors import WeirError
from tokenweir.wire.v1 import inference_pb2 as pb

_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def status(error: WeirError) -> grpc.StatusCode:
    """Return the status code that an error means."""
    return _CODES.get(problem(error).status, grpc.StatusCode.INTERNAL)


def detail(error: WeirError) -> pb.Error:
    """Return what the trailing metadata say of an error."""
    told = problem(error)
    later = error.later if isinstance(error, FailedError) else error.retryable
    made = pb.Error(
        code=told.error.code,
        message=error.message,
        mend=error.mend,
        param=told.error.param or "",
        http_status=told.status,
        retryable=later,
    )
    retry_after_ns: int | None = getattr(error, "retry_after_ns", None)
    if retry_after_ns is not None:
        made.retry_after_ns = retry_after_ns
    return made


def refusal(error: WeirError) -> pb.Event:
    """Return the one event of a request that is refused inside a conversation."""
    told = detail(error)
    failed = pb.Failed(
        kind=told.code,
        message=told.message,
        status=told.http_status,
        retryable=told.retryable,
        param=told.param,
        mend=told.mend,
    )
    if told.HasField("retry_after_ns"):
        failed.retry_after_ns = told.retry_after_ns
    return pb.Event(seq=0, failed=failed)

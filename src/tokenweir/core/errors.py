"""One tree of errors; each class says how it is reported.

::

    WeirError
    ├── InputError             what the caller wrote cannot be used
    │   ├── ConfigError        settings file, environment or flag
    │   │   └── StoreHeldError     a store that another process has to itself
    │   ├── SpecError          an experiment that contradicts itself
    │   ├── ParameterError     a field of a request
    │   ├── CorpusError        a corpus file, with line and reason
    │   ├── ConflictError      it contradicts what was taken on before
    │   ├── GuidanceError      a schema, expression or grammar that cannot guide an answer
    │   └── RecordError        a run directory that is missing, foreign or damaged
    ├── UnauthorizedError      no valid credential was shown
    ├── ForbiddenError         the credential does not allow this
    ├── NotFoundError          there is none, or it is another user's
    ├── UnlikeError            a comparison of runs that may not be compared
    ├── EndpointError          the server under test
    │   ├── UnreachableError   no connection
    │   ├── RefusedError       401, 403, 404: the server will not serve this
    │   ├── OverloadedError    429, 503: it may, later
    │   ├── UpstreamError      any other error status or error body
    │   └── ProtocolError      the answer is not what the protocol promises
    ├── ServingError           a server of ours cannot serve this request
    │   ├── EngineError            the inference engine failed
    │   ├── EngineRestartedError   the engine's process was lost under the request
    │   ├── UnavailableError       not now: a part it needs is starting, broken or overloaded
    │   │   └── BrownedOutError        not under the load of now: less is given, so that it comes in time
    │   ├── QuotaExceededError     a limit on use is reached
    │   ├── DrainingError          not any more: the server ends
    │   ├── TooManyStreamsError    as many requests as may be are in work
    │   ├── ModelNotLoadedError    no model of this name is loaded
    │   └── DeadlineError          not finished in the time that was given
    ├── ResourceError          this machine lacks something
    │   ├── DescriptorError    too few file descriptors
    │   ├── DiskFullError      no room left for what was measured
    │   └── NoMemoryError      a model or request that does not fit into memory
    ├── MissingExtraError      an optional dependency is not installed
    ├── NoResultError          a run in which no request completed
    └── CancelledError         the user stopped it

A message says what is wrong with the value (``!r``); ``mend`` says what to do about it.
"""

from __future__ import annotations

import logging
from typing import ClassVar


class WeirError(Exception):
    """Base of every error Tokenweir raises on purpose.

    ``code`` is a stable machine name, ``http_status`` the status an HTTP door answers with, ``retryable``
    whether the same request may succeed later, ``exit_code`` the process status of a command it ends.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    log_level: ClassVar[int] = logging.ERROR
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}; {self.mend}" if self.mend else self.message


class InputError(WeirError):
    """What the caller wrote cannot be used."""

    code = "bad_input"
    http_status = 400
    log_level = logging.WARNING
    exit_code = 2


class ConfigError(InputError):
    """A setting in a file, the environment or a flag cannot be used."""

    code = "bad_config"


class StoreHeldError(ConfigError):
    """A store that one process alone may write is held by another, such as a running gateway."""

    code = "store_held"


class SpecError(InputError):
    """An experiment spec contradicts itself or lacks something."""

    code = "bad_spec"


class ParameterError(InputError):
    """A field of a request cannot be used; ``param`` names it, ``reason`` is OpenAI's code for why."""

    code = "bad_parameter"

    def __init__(self, message: str, *, param: str, reason: str = "invalid_value", mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.param = param
        self.reason = reason


class CorpusError(InputError):
    """A corpus cannot be read; the message names file, line and reason."""

    code = "bad_corpus"


class ConflictError(InputError):
    """What the caller sent contradicts what it sent before, under the same idempotency key."""

    code = "conflict"
    http_status = 409


class GuidanceError(InputError):
    """A schema, expression or grammar cannot guide an answer; the message names the part."""

    code = "guidance"


class RecordError(InputError):
    """A run directory is missing, foreign or damaged."""

    code = "bad_record"


class UnauthorizedError(WeirError):
    """No valid credential was shown."""

    code = "invalid_api_key"
    http_status = 401
    log_level = logging.INFO
    exit_code = 5


class ForbiddenError(WeirError):
    """The credential is valid and does not allow this."""

    code = "forbidden"
    http_status = 403
    log_level = logging.INFO
    exit_code = 5


class NotFoundError(WeirError):
    """There is no such thing, or it belongs to somebody else, which is not told apart."""

    code = "not_found"
    http_status = 404
    log_level = logging.INFO
    exit_code = 2


class UnlikeError(WeirError):
    """Runs whose workload or measurement differ may not be compared; ``fields`` lists the differences."""

    code = "unlike_runs"
    http_status = 409
    log_level = logging.WARNING
    exit_code = 3

    def __init__(self, message: str, *, fields: tuple[str, ...] = (), mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.fields = fields


class EndpointError(WeirError):
    """The server under test failed in some way; ``status`` is its HTTP status where there was one."""

    code = "endpoint"
    http_status = 502
    exit_code = 4

    def __init__(self, message: str, *, mend: str = "", status: int | None = None) -> None:
        super().__init__(message, mend=mend)
        self.status = status


class UnreachableError(EndpointError):
    """No connection could be made, or it broke before an answer."""

    code = "unreachable"
    retryable = True


class RefusedError(EndpointError):
    """401, 403, 404: the server will not serve this request."""

    code = "refused"
    exit_code = 5


class OverloadedError(EndpointError):
    """429 or 503: the server may serve this later; ``retry_after_ns`` is its own advice."""

    code = "overloaded"
    http_status = 503
    retryable = True

    def __init__(
        self, message: str, *, mend: str = "", status: int | None = None, retry_after_ns: int | None = None
    ) -> None:
        super().__init__(message, mend=mend, status=status)
        self.retry_after_ns = retry_after_ns


class UpstreamError(EndpointError):
    """The server answered with an error status or an error body."""

    code = "upstream"


class ProtocolError(EndpointError):
    """The answer is not what the protocol promises."""

    code = "protocol"


class ServingError(WeirError):
    """A model server of ours cannot serve this request; ``retry_after_ns`` says when to come back, if known."""

    code = "serving"
    exit_code = 4

    def __init__(self, message: str, *, mend: str = "", retry_after_ns: int | None = None) -> None:
        super().__init__(message, mend=mend)
        self.retry_after_ns = retry_after_ns


class EngineError(ServingError):
    """The inference engine failed at this request."""

    code = "engine"


class EngineRestartedError(ServingError):
    """The engine's process was lost while it worked on the request; it comes back by itself."""

    code = "engine_restarted"
    http_status = 503
    retryable = True


class UnavailableError(ServingError):
    """Not now: an engine or a store is starting, broken or overloaded; nothing was changed."""

    code = "unavailable"
    http_status = 503
    retryable = True


class QuotaExceededError(ServingError):
    """A limit on use is reached; ``retry_after_ns`` is when its window ends."""

    code = "rate_limit_exceeded"
    http_status = 429
    retryable = True
    log_level = logging.INFO
    exit_code = 5


class DrainingError(ServingError):
    """Not any more: the server finishes what it has and ends."""

    code = "draining"
    http_status = 503
    retryable = True
    log_level = logging.WARNING


class TooManyStreamsError(ServingError):
    """As many requests as may be are in work."""

    code = "too_many_streams"
    http_status = 429
    retryable = True
    log_level = logging.WARNING


class BrownedOutError(UnavailableError):
    """Not under the load of now; ``degraded`` is what the header of that name says, ``status`` 429 or 503."""

    code = "browned_out"
    log_level = logging.INFO

    def __init__(
        self,
        message: str,
        *,
        mend: str = "",
        degraded: str = "",
        status: int = 503,
        retry_after_ns: int | None = None,
    ) -> None:
        super().__init__(message, mend=mend, retry_after_ns=retry_after_ns)
        self.degraded = degraded
        self.status = status


class ModelNotLoadedError(ServingError):
    """No model of this name is loaded; the message lists those that are."""

    code = "model_not_loaded"
    http_status = 404
    log_level = logging.WARNING


class DeadlineError(ServingError):
    """The request was not finished in the time that was given."""

    code = "timeout"
    http_status = 504
    retryable = True
    log_level = logging.WARNING


class ResourceError(WeirError):
    """This machine lacks something the command needs."""

    code = "resource"
    http_status = 507
    exit_code = 6


class DescriptorError(ResourceError):
    """Too few file descriptors may be opened."""

    code = "descriptors"


class DiskFullError(ResourceError):
    """No room is left for what was measured."""

    code = "disk_full"


class NoMemoryError(ResourceError):
    """A model or a request does not fit into the memory there is; the message holds the arithmetic."""

    code = "no_memory"


class MissingExtraError(WeirError):
    """An optional dependency that this command needs is not installed."""

    code = "missing_extra"
    exit_code = 2


class NoResultError(WeirError):
    """A run ended without one completed request."""

    code = "no_result"
    exit_code = 7


class CancelledError(WeirError):
    """The user stopped the command; what was measured is kept."""

    code = "cancelled"
    log_level = logging.INFO
    exit_code = 130

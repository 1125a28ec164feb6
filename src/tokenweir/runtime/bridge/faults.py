"""Our errors on the wire: each class of :mod:`tokenweir.core.errors` crosses the bridge and comes out the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tokenweir.core.errors import (
    DeadlineError,
    DrainingError,
    EndpointError,
    EngineError,
    GuidanceError,
    InputError,
    MissingExtraError,
    ModelNotLoadedError,
    ParameterError,
    ProtocolError,
    ResourceError,
    ServingError,
    TooManyStreamsError,
    UnavailableError,
    WeirError,
)
from tokenweir.runtime.bridge.messages import Code, Fault, FaultData

_NUMBERS: Final[tuple[tuple[type[WeirError], int], ...]] = (
    (ModelNotLoadedError, Code.MODEL_NOT_LOADED),
    (ResourceError, Code.NO_MEMORY),
    (TooManyStreamsError, Code.TOO_MANY_STREAMS),
    (GuidanceError, Code.GUIDANCE),
    (DeadlineError, Code.TIMEOUT),
    (DrainingError, Code.DRAINING),
    (InputError, Code.INVALID_PARAMS),
)


def fault_of(error: BaseException) -> Fault:
    """Return ``error`` as it goes over the wire; what is none of ours becomes ``INTERNAL`` with its type's name."""
    if not isinstance(error, WeirError):
        return Fault(code=Code.INTERNAL, message=f"{type(error).__name__}: {error}")
    number = next((number for kind, number in _NUMBERS if isinstance(error, kind)), Code.ENGINE)
    data = FaultData(
        code=error.code,
        mend=error.mend,
        retryable=error.retryable,
        param=error.param if isinstance(error, ParameterError) else "",
        reason=error.reason if isinstance(error, ParameterError) else "",
        retry_after_ns=error.retry_after_ns if isinstance(error, ServingError) else None,
    )
    return Fault(code=number, message=error.message, data=data)


def error_of(fault: Fault) -> WeirError:
    """Return the error that ``fault`` stands for: the same class where its ``data`` names one."""
    data = fault.data
    if data is None and fault.code == Code.INTERNAL:
        return EngineError(f"the engine's process failed: {fault.message}", mend="see its log; report this")
    if data is None:
        return ProtocolError(f"the engine's process refused a message ({fault.code}): {fault.message}")
    kind = CLASSES.get(data.code, UnavailableError if data.retryable else EngineError)
    if issubclass(kind, ParameterError):
        return kind(fault.message, param=data.param, reason=data.reason, mend=data.mend)
    if issubclass(kind, ServingError):
        return kind(fault.message, mend=data.mend, retry_after_ns=data.retry_after_ns)
    return kind(fault.message, mend=data.mend)


def _tree(kind: type[WeirError]) -> Iterator[type[WeirError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from _tree(inner)


# What an engine's process can mean by a fault; errors of other slices have no business on this bridge.
_BRANCHES: Final = (InputError, EndpointError, ServingError, ResourceError, MissingExtraError)
CLASSES: Final[Mapping[str, type[WeirError]]] = {
    kind.code: kind for branch in _BRANCHES for kind in _tree(branch)
}
"""The errors that cross the bridge, by ``code``."""

from __future__ import annotations

import msgspec
import pytest

from tokenweir.core.errors import (
    EngineError,
    GuidanceError,
    NoMemoryError,
    ParameterError,
    ProtocolError,
    UnavailableError,
    WeirError,
)
from tokenweir.runtime.bridge.faults import CLASSES, error_of, fault_of
from tokenweir.runtime.bridge.messages import Code, Fault, FaultData


def across(error: BaseException) -> WeirError:
    return error_of(msgspec.json.decode(msgspec.json.encode(fault_of(error)), type=Fault))


@pytest.mark.parametrize("kind", CLASSES.values(), ids=lambda kind: kind.code)
def test_every_error_comes_out_as_the_class_that_went_in(kind: type[WeirError]) -> None:
    error = (
        kind("what 'x' is", param="n", reason="too_large", mend="mend it")
        if issubclass(kind, ParameterError)
        else kind("what 'x' is", mend="mend it")
    )
    got = across(error)
    assert type(got) is kind
    assert str(got) == str(error)
    if isinstance(error, ParameterError):
        assert isinstance(got, ParameterError)
        assert (got.param, got.reason) == ("n", "too_large")


def test_the_documented_numbers_hold() -> None:
    assert fault_of(GuidanceError("x")).code == -32004
    assert fault_of(NoMemoryError("x")).code == Code.NO_MEMORY
    assert fault_of(ParameterError("x", param="n")).code == Code.INVALID_PARAMS
    assert fault_of(EngineError("x")).code == Code.ENGINE


def test_advice_on_when_to_come_back_crosses_too() -> None:
    got = across(UnavailableError("busy", retry_after_ns=7))
    assert isinstance(got, UnavailableError)
    assert got.retry_after_ns == 7


def test_what_is_no_error_of_ours_is_the_engines_failure() -> None:
    got = across(ZeroDivisionError("by zero"))
    assert type(got) is EngineError
    assert "ZeroDivisionError: by zero" in str(got)


def test_an_unknown_code_keeps_whether_to_retry() -> None:
    def got(*, retryable: bool) -> WeirError:
        return error_of(
            Fault(code=Code.ENGINE, message="x", data=FaultData(code="news", retryable=retryable))
        )

    assert got(retryable=True).retryable
    assert not got(retryable=False).retryable


def test_a_fault_without_details_is_a_breach_of_the_protocol() -> None:
    assert type(error_of(Fault(code=Code.METHOD_NOT_FOUND, message="no"))) is ProtocolError

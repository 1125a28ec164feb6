from __future__ import annotations

import math
from typing import TypeAlias

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.canonical import MAX_INTEGER, canonical_hash, canonical_json
from tokenweir.core.errors import SpecError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_texts = st.text(st.characters(exclude_categories=["Cs"]))
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_texts, inner, max_size=5),
    max_leaves=20,
)


@given(_values)
def test_equals_the_reference_implementation(value: Json) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_equal_the_reference_and_read_back(value: float) -> None:
    written = canonical_json(value)
    assert written == rfc8785.dumps(value)
    assert float(written) == value


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=0xD7FF, exclude_categories=["Cs"])), st.integers(0, 9)
    )
)
def test_keys_sort_by_utf16(value: dict[str, Json]) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e21, "1e+21"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
        (-0.0, "0"),
        (4.50, "4.5"),
        (333333333.33333329, "333333333.3333333"),
        (100.0, "100"),
        (-1.25, "-1.25"),
    ],
)
def test_numbers_are_written_as_ecmascript_does(value: float, text: str) -> None:
    assert canonical_json(value).decode() == text


def test_keys_outside_the_basic_plane_come_before_those_at_its_end() -> None:
    assert canonical_json({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, MAX_INTEGER + 1, -MAX_INTEGER - 1, {1: 2}, {"a": {3}}, b"x", "\ud800"],
)
def test_what_json_lacks_is_refused(value: object) -> None:
    with pytest.raises(SpecError):
        canonical_json(value)


class _Point(msgspec.Struct):
    y: int
    x: tuple[int, ...]


def test_structs_and_tuples_are_objects_and_arrays() -> None:
    assert canonical_json(_Point(y=1, x=(2, 3))) == b'{"x":[2,3],"y":1}'
    empty: list[object] = [{}, [], ()]
    assert canonical_json(empty) == b"[{},[],[]]"


def test_hash_is_of_the_bytes() -> None:
    assert canonical_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

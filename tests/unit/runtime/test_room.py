from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import NoMemoryError, UnavailableError
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.room import Resident, idle, shares, victims

MIB = 1 << 20


def card(weights_bytes: int) -> ModelCard:
    return ModelCard(
        name="new",
        path="/new",
        revision="",
        architecture="llama",
        context_tokens=100,
        vocabulary=10,
        weights_bytes=weights_bytes,
        kv_bytes_per_token=1,
    )


def resident(name: str, weights_bytes: int, used_ns: int, users: int = 0) -> Resident:
    return Resident(name=name, weights_bytes=weights_bytes, used_ns=used_ns, users=users)


def test_the_least_recently_used_go_and_no_more_than_must() -> None:
    there = [resident("c", 30, 3), resident("a", 30, 1), resident("b", 30, 2)]
    assert victims(card(10), there, limit_bytes=100, reserved_bytes=0) == []
    assert victims(card(20), there, limit_bytes=100, reserved_bytes=0) == ["a"]
    assert victims(card(50), there, limit_bytes=100, reserved_bytes=0) == ["a", "b"]
    assert victims(card(10), there, limit_bytes=100, reserved_bytes=5) == ["a"]
    assert victims(card(10), there, limit_bytes=100, reserved_bytes=0, taken_bytes=5) == ["a"]


def test_a_model_in_use_never_goes() -> None:
    there = [resident("a", 60, 1, users=1), resident("b", 30, 2)]
    assert victims(card(40), there, limit_bytes=100, reserved_bytes=0) == ["b"]
    with pytest.raises(UnavailableError) as caught:
        victims(
            card(50 * MIB), [resident("a", 60 * MIB, 1, users=1)], limit_bytes=100 * MIB, reserved_bytes=0
        )
    assert "50.00 MiB of weights + 60.00 MiB of models in use = 110.00 MiB" in caught.value.message
    assert caught.value.retryable
    assert caught.value.retry_after_ns


def test_what_running_requests_reserved_is_not_given_away() -> None:
    with pytest.raises(UnavailableError, match=r"20.00 MiB of running requests"):
        victims(card(90 * MIB), [], limit_bytes=100 * MIB, reserved_bytes=0, taken_bytes=20 * MIB)


def test_what_fits_in_no_case_is_refused_for_good() -> None:
    there = [resident("a", 60 * MIB, 1, users=1)]
    with pytest.raises(NoMemoryError) as caught:
        victims(card(99 * MIB), there, limit_bytes=100 * MIB, reserved_bytes=2 * MIB, taken_bytes=MIB)
    assert caught.value.message == (
        "'new' does not fit into 100.00 MiB: 99.00 MiB of weights + 2.00 MiB of prefix cache = 101.00 MiB"
    )
    assert not caught.value.retryable


@given(
    there=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 2)), max_size=6),
    weights=st.integers(0, 120),
    reserved=st.integers(0, 30),
    taken=st.integers(0, 50),
)
def test_what_is_loaded_fits_and_nobody_in_use_went(
    there: list[tuple[int, int, int]], weights: int, reserved: int, taken: int
) -> None:
    residents = [resident(str(at), *one) for at, one in enumerate(there)]
    free = [one for one in residents if not one.users]
    kept = sum(one.weights_bytes for one in residents if one.users)
    try:
        gone = victims(card(weights), residents, limit_bytes=100, reserved_bytes=reserved, taken_bytes=taken)
    except NoMemoryError:
        assert weights + reserved > 100
    except UnavailableError:
        assert weights + reserved <= 100 < weights + reserved + kept + taken
    else:
        assert set(gone) <= {one.name for one in free}
        left = sum(one.weights_bytes for one in residents if one.name not in gone)
        assert left + weights + reserved + taken <= 100
        oldest = sorted(free, key=lambda one: one.used_ns)[: len(gone)]
        assert {one.used_ns for one in oldest} >= {one.used_ns for one in residents if one.name in gone}


def test_nobody_who_is_in_use_is_idle() -> None:
    there = [resident("a", 1, 10), resident("b", 1, 10, users=1), resident("c", 1, 60)]
    assert idle(there, ttl_ns=50, now_ns=59) == []
    assert idle(there, ttl_ns=50, now_ns=60) == ["a"]
    assert idle(there, ttl_ns=50, now_ns=200) == ["a", "c"]


@given(
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=4),
    st.integers(0, 1 << 41),
    st.integers(0, 1 << 30),
)
def test_processes_together_never_get_more_than_there_is(
    weights: list[int], limit: int, reserved: int
) -> None:
    parts = shares(weights, limit_bytes=limit, reserved_bytes=reserved)
    needed = sum(weights) + reserved * len(weights)
    assert sum(parts) <= max(limit, needed)
    assert all(part >= own + reserved for part, own in zip(parts, weights, strict=True))
    rests = {part - own for part, own in zip(parts, weights, strict=True)}
    assert len(rests) == 1, "what is left is divided equally"

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokenweir.bench.arrivals import (
    MAX_REQUESTS,
    Arrival,
    Concurrency,
    Constant,
    Gamma,
    Normal,
    Poisson,
    Ramp,
    Trace,
    Uniform,
    parse_arrivals,
    schedule,
)
from tokenweir.core.errors import CorpusError, InputError, SpecError

S = 1_000_000_000
MS = 1_000_000

_rates = st.floats(0.5, 5_000).map(lambda rate: round(rate, 3))
_gaps = st.integers(1, 10 * S)


def _uniform(bounds: tuple[int, int]) -> Uniform:
    return Uniform(min(bounds), max(bounds))


_random: st.SearchStrategy[Arrival] = st.one_of(
    st.builds(Poisson, _rates),
    st.builds(Gamma, _rates, st.floats(0.1, 4).map(lambda cv: round(cv, 3))),
    st.builds(Normal, _gaps, st.integers(0, 5 * S)),
    st.tuples(st.integers(0, S), _gaps).map(_uniform),
)
_open: st.SearchStrategy[Arrival] = st.one_of(
    _random,
    st.builds(Constant, _rates),
    st.builds(Ramp, st.one_of(st.just(0.0), _rates), _rates, st.integers(MS, 60 * S)),
)
_closed: st.SearchStrategy[Arrival] = st.builds(Concurrency, st.integers(1, 10_000), st.none() | _rates)
_seeds = st.integers(0, 2**53 - 1)


def _gaps_of(
    arrival: Arrival, *, seed: int = 5, count: int = 40_000
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.diff(schedule(arrival, seed=seed, load=0, requests=count, duration_ns=None), prepend=0)


@given(st.lists(st.one_of(_open, _closed), min_size=1, max_size=4))
def test_text_reads_back(loads: list[Arrival]) -> None:
    assert parse_arrivals(",".join(load.text for load in loads)) == tuple(loads)


@given(_open, _seeds, st.integers(0, 3), st.integers(0, 300), st.integers(0, 300))
def test_schedule_is_sorted_and_reproducible_and_a_shorter_one_begins_it(
    arrival: Arrival, seed: int, load: int, count: int, more: int
) -> None:
    long = schedule(arrival, seed=seed, load=load, requests=count + more, duration_ns=None)
    short = schedule(arrival, seed=seed, load=load, requests=count, duration_ns=None)
    assert long.dtype == np.int64
    assert long.size == count + more
    assert bool((np.diff(long) >= 0).all())
    assert bool((long >= 0).all())
    assert long[:count].tolist() == short.tolist()


@given(_open, _seeds, st.integers(1, 20 * S))
def test_duration_keeps_what_comes_before_its_end(arrival: Arrival, seed: int, duration_ns: int) -> None:
    both = schedule(arrival, seed=seed, load=0, requests=200, duration_ns=duration_ns)
    counted = schedule(arrival, seed=seed, load=0, requests=200, duration_ns=None)
    assert both.tolist() == counted[counted < duration_ns].tolist()


@given(_random, _seeds)
def test_duration_alone_agrees_with_a_count(arrival: Arrival, seed: int) -> None:
    rate = arrival.asked_rate
    assert rate is not None
    duration_ns = int(50 / rate * S)
    timed = schedule(arrival, seed=seed, load=0, requests=None, duration_ns=duration_ns)
    counted = schedule(arrival, seed=seed, load=0, requests=timed.size + 1, duration_ns=None)
    assert counted[:-1].tolist() == timed.tolist()
    assert counted[-1] >= duration_ns


@given(_random, _seeds)
def test_loads_and_seeds_are_independent(arrival: Arrival, seed: int) -> None:
    if isinstance(arrival, Normal | Uniform):
        return  # Either may have no spread at all.
    first = schedule(arrival, seed=seed, load=0, requests=20, duration_ns=None)
    assert first.tolist() != schedule(arrival, seed=seed, load=1, requests=20, duration_ns=None).tolist()
    assert first.tolist() != schedule(arrival, seed=seed + 1, load=0, requests=20, duration_ns=None).tolist()


def test_constant_has_even_gaps_from_the_start() -> None:
    times = schedule(Constant(3), seed=0, load=0, requests=None, duration_ns=2 * S)
    assert times.tolist() == [0, 333333333, 666666667, S, 1333333333, 1666666667]


def test_poisson_gaps_are_exponential() -> None:
    gaps = _gaps_of(Poisson(200)) / S
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.03)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 200)).pvalue > 0.001


@pytest.mark.parametrize("cv", [0.25, 1.0, 2.5])
def test_gamma_has_its_rate_and_coefficient_of_variation(cv: float) -> None:
    gaps = _gaps_of(Gamma(50, cv), count=80_000) / S
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.04)


def test_normal_has_its_mean_and_spread() -> None:
    gaps = _gaps_of(Normal(50 * MS, 5 * MS))
    assert gaps.mean() == pytest.approx(50 * MS, rel=0.005)
    assert gaps.std() == pytest.approx(5 * MS, rel=0.02)


@given(st.integers(1, S), st.integers(0, 3 * S))
def test_asked_rate_of_a_normal_is_that_of_a_normal_above_zero(mean_ns: int, sd_ns: int) -> None:
    rate = Normal(mean_ns, sd_ns).asked_rate
    above = stats.truncnorm.mean(-mean_ns / sd_ns, math.inf, mean_ns, sd_ns) if sd_ns else mean_ns
    assert rate == pytest.approx(S / above, rel=1e-6)


def test_normal_gaps_stay_above_zero_and_keep_the_asked_rate() -> None:
    arrival = Normal(10 * MS, 20 * MS)
    gaps = _gaps_of(arrival)
    assert gaps.min() >= 0
    assert arrival.asked_rate is not None
    assert S / gaps.mean() == pytest.approx(arrival.asked_rate, rel=0.02)


@given(_seeds)
def test_uniform_gaps_stay_within_their_bounds(seed: int) -> None:
    gaps = _gaps_of(Uniform(10 * MS, 90 * MS), seed=seed, count=500)
    assert gaps.min() >= 10 * MS - 1
    assert gaps.max() <= 90 * MS + 1


def test_uniform_has_its_mean_and_spread() -> None:
    gaps = _gaps_of(Uniform(10 * MS, 90 * MS))
    assert gaps.mean() == pytest.approx(50 * MS, rel=0.01)
    assert gaps.std() == pytest.approx(80 * MS / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize(
    "arrival", [Ramp(5, 50, 30 * S), Ramp(50, 5, 30 * S), Ramp(0, 20, 10 * S), Ramp(7, 7, S)]
)
def test_ramp_is_the_integral_of_its_rate(arrival: Ramp) -> None:
    times = schedule(arrival, seed=0, load=0, requests=2_000, duration_ns=None) / S
    over = arrival.over_ns / S
    inside = np.minimum(times, over)
    due = (
        arrival.lo * inside
        + (arrival.hi - arrival.lo) / (2 * over) * inside**2
        + arrival.hi * (times - inside)
    )
    assert due == pytest.approx(np.arange(2_000), abs=1e-5)


def test_concurrency_has_times_only_under_a_cap() -> None:
    free, capped = Concurrency(4), Concurrency(4, 20.0)
    assert schedule(free, seed=0, load=0, requests=None, duration_ns=None).size == 0
    assert schedule(capped, seed=0, load=0, requests=3, duration_ns=None).tolist() == [0, 50 * MS, 100 * MS]
    assert schedule(capped, seed=0, load=0, requests=None, duration_ns=150 * MS).tolist() == [
        0,
        50 * MS,
        100 * MS,
    ]
    assert schedule(capped, seed=0, load=0, requests=2, duration_ns=S).tolist() == [0, 50 * MS]
    assert not capped.open_loop
    assert capped.asked_rate is None


def test_schedule_is_the_same_on_every_machine() -> None:
    poisson = schedule(Poisson(20), seed=7, load=1, requests=4, duration_ns=None)
    normal = schedule(Normal(50 * MS, 5 * MS), seed=7, load=1, requests=4, duration_ns=None)
    assert poisson.tolist() == [24686591, 83519677, 95931668, 144846541]
    assert normal.tolist() == [48338112, 96375614, 144081122, 196193142]


def test_a_load_without_end_is_refused() -> None:
    with pytest.raises(SpecError, match="--requests or --duration"):
        schedule(Poisson(1), seed=0, load=0, requests=None, duration_ns=None)
    with pytest.raises(SpecError, match="--requests or --duration"):
        schedule(Concurrency(1, 5.0), seed=0, load=0, requests=None, duration_ns=None)
    with pytest.raises(SpecError, match="cannot be planned"):
        schedule(Constant(1), seed=0, load=0, requests=MAX_REQUESTS + 1, duration_ns=None)
    with pytest.raises(SpecError, match="cannot be planned"):
        schedule(Concurrency(1, 1e9), seed=0, load=0, requests=None, duration_ns=3600 * S)


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("concurrency=1,8,64", (Concurrency(1), Concurrency(8), Concurrency(64))),
        ("concurrency=1,8@20/s", (Concurrency(1), Concurrency(8, 20.0))),
        ("concurrency(4)", (Concurrency(4),)),
        ("poisson=600/min, 20/s", (Poisson(10.0), Poisson(20.0))),
        ("constant(20/s)", (Constant(20.0),)),
        ("gamma=20/s:cv=2", (Gamma(20.0, 2.0),)),
        ("gamma(2)=20/s", (Gamma(20.0, 2.0),)),
        ("gamma(cv=2)=20/s", (Gamma(20.0, 2.0),)),
        ("gamma(20/s, 2),poisson=1/s", (Gamma(20.0, 2.0), Poisson(1.0))),
        ("normal(50ms,5ms)", (Normal(50 * MS, 5 * MS),)),
        ("normal(mean=50ms,sd=5ms)", (Normal(50 * MS, 5 * MS),)),
        ("normal=50ms:sd=0s", (Normal(50 * MS, 0),)),
        ("uniform=10ms..90ms,0s..1s", (Uniform(10 * MS, 90 * MS), Uniform(0, S))),
        ("uniform(10ms,90ms)", (Uniform(10 * MS, 90 * MS),)),
        ("ramp=5/s..50/s:over=30s", (Ramp(5.0, 50.0, 30 * S),)),
        ("ramp(0/s,50/s,30s)", (Ramp(0.0, 50.0, 30 * S),)),
    ],
)
def test_notations(text: str, loads: tuple[Arrival, ...]) -> None:
    assert parse_arrivals(text) == loads
    assert all(load.open_loop != isinstance(load, Concurrency) for load in loads)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concurrenzy=4", "did you mean concurrency?"),
        ("nonsense(3)", "the processes are concurrency"),
        ("", "names no arrival process"),
        ("5", "names no arrival process"),
        ("concurrency", "lacks its value"),
        ("concurrency=", "lacks slots"),
        ("concurrency=0", "at least 1"),
        ("concurrency=4.5", "whole number"),
        ("concurrency=4,", "names no arrival process"),
        ("poisson=20", "--arrival poisson 20 has no unit; write 20/s or 20/min"),
        ("poisson=0/s", "rate 0"),
        ("poisson=20/s:cv=2", "has no value 'cv'"),
        ("gamma=20/s", "lacks cv"),
        ("gamma=20/s:cv=0", "no number above 0"),
        ("gamma=20/s:cv=x", "no number above 0"),
        ("gamma(1,2,3)", "too many values"),
        ("normal=50ms", "lacks sd"),
        ("normal=0s:sd=5ms", "mean gap 0"),
        ("normal=50:sd=5ms", "has no unit"),
        ("normal=50ms:sd=5ms:sd=6ms", "two values"),
        ("uniform=9ms..1ms", "no gap above 0"),
        ("uniform=0s..0s", "no gap above 0"),
        ("uniform=9ms", "lacks hi"),
        ("ramp=5/s..50/s", "lacks over"),
        ("ramp=5/s..50/s:over=0s", "no time"),
        ("ramp=5/s..0/s:over=1s", "rate 0"),
    ],
)
def test_bad_notation_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_arrivals(text)
    assert message in str(caught.value)


def _trace_file(folder: Path, times_ms: list[float]) -> Path:
    path = folder / "a,b.jsonl"
    lines = [{"timestamp": ms, "input_length": 10, "output_length": 5} for ms in times_ms]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_trace_repeats_its_times_from_its_first(tmp_path: Path) -> None:
    path = _trace_file(tmp_path, [1500.5, 1000, 3000])
    (plain,) = parse_arrivals(f"trace={path}")
    (fast,) = parse_arrivals(f"trace={path}:speed=2")
    assert isinstance(fast, Trace)
    assert schedule(plain, seed=0, load=0, requests=None, duration_ns=None).tolist() == [
        0,
        500_500_000,
        2 * S,
    ]
    assert schedule(fast, seed=0, load=0, requests=2, duration_ns=None).tolist() == [0, 250_250_000]
    assert schedule(fast, seed=0, load=0, requests=None, duration_ns=S).size == 2
    assert plain.asked_rate == pytest.approx(1.0)
    assert fast.asked_rate == pytest.approx(2.0)
    assert fast.text == f"trace=a,b.jsonl:sha256={fast.digest}:speed=2"


def test_trace_is_named_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    texts: list[str] = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (load,) = parse_arrivals(f"trace={_trace_file(tmp_path / name, [1, 2])}")
        texts.append(load.text)
    assert texts[0] == texts[1]


def test_trace_of_one_moment_has_no_rate(tmp_path: Path) -> None:
    (load,) = parse_arrivals(f"trace={_trace_file(tmp_path, [7, 7])}")
    assert load.asked_rate is None
    assert load.open_loop


def test_bad_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="No such file"):
        parse_arrivals(f"trace={tmp_path / 'none.jsonl'}")
    with pytest.raises(InputError, match="no number above 0"):
        parse_arrivals(f"trace={_trace_file(tmp_path, [1])}:speed=0")

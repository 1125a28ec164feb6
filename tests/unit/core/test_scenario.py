from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import SpecError
from tokenweir.core.scenario import (
    Embedding,
    Fixed,
    Normal,
    Scenario,
    Uniform,
    draw_lengths,
    parse_scenario,
)


def _uniform(inputs: list[int], outputs: list[int]) -> Uniform:
    return Uniform(inputs[0], inputs[1], outputs[0], outputs[1])


_tokens = st.integers(1, 4096)
_ordered = st.tuples(_tokens, _tokens).map(sorted)
_sds = st.floats(0, 500)
_scenarios: st.SearchStrategy[Scenario] = st.one_of(
    st.builds(Fixed, _tokens, _tokens),
    st.builds(Embedding, _tokens),
    st.builds(Normal, _tokens.map(float), _sds, _tokens.map(float), _sds),
    st.builds(_uniform, _ordered, _ordered),
)


@given(_scenarios)
def test_text_reads_back(scenario: Scenario) -> None:
    assert parse_scenario(scenario.text) == scenario


@given(_scenarios, st.integers(0, 200), st.integers(0, 2**32))
def test_lengths_are_whole_and_at_least_one(scenario: Scenario, count: int, seed: int) -> None:
    lengths = draw_lengths(scenario, count, seed=seed)
    assert lengths.input_tokens.size == count
    assert lengths.output_tokens.size == (0 if isinstance(scenario, Embedding) else count)
    assert bool((lengths.input_tokens >= 1).all())
    assert bool((lengths.output_tokens >= 1).all())


@given(_scenarios, st.integers(0, 100), st.integers(0, 100), st.integers(0, 2**32))
def test_fewer_are_the_beginning_of_more(scenario: Scenario, count: int, more: int, seed: int) -> None:
    few, many = draw_lengths(scenario, count, seed=seed), draw_lengths(scenario, count + more, seed=seed)
    assert few.input_tokens.tolist() == many.input_tokens[:count].tolist()
    assert few.output_tokens.tolist() == many.output_tokens[:count].tolist()


@given(_ordered, st.integers(0, 2**32))
def test_uniform_stays_within_its_bounds(bounds: list[int], seed: int) -> None:
    lo, hi = bounds
    drawn = draw_lengths(Uniform(lo, hi, 1, 1), 300, seed=seed).input_tokens
    assert lo <= drawn.min()
    assert drawn.max() <= hi


def test_uniform_reaches_both_bounds_evenly() -> None:
    drawn = draw_lengths(Uniform(3, 6, 1, 1), 40_000, seed=1).input_tokens
    counts = np.bincount(drawn)[3:]
    assert counts.size == 4
    assert bool((abs(counts - 10_000) < 500).all())


def test_normal_has_its_mean_and_spread() -> None:
    drawn = draw_lengths(Normal(500, 50, 100, 10), 20_000, seed=3)
    assert drawn.input_tokens.mean() == pytest.approx(500, abs=2)
    assert drawn.input_tokens.std() == pytest.approx(50, rel=0.03)
    assert drawn.output_tokens.mean() == pytest.approx(100, abs=0.5)


def test_input_and_output_are_independent() -> None:
    drawn = draw_lengths(Normal(500, 50, 500, 50), 5_000, seed=3)
    assert abs(np.corrcoef(drawn.input_tokens, drawn.output_tokens)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("D(128)", "no scenario"),
        ("D(0,5)", "not between 1"),
        ("D(1.5,5)", "whole number"),
        ("D(128,64) x", "no scenario"),
        ("N(10,-1)/(10,1)", "no scenario"),
        ("U(9,3)/(1,2)", "lower bound above"),
        ("I(512,512,1)", "not supported yet"),
        ("E(0)", "not between 1"),
        ("D(99999999999,1)", "not between 1"),
        ("", "no scenario"),
    ],
)
def test_bad_scenario_says_why(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_scenario(text)

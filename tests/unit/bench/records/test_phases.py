from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.bench.records.columns import PHASES
from tokenweir.bench.records.model import Window
from tokenweir.bench.records.phases import assign_phases
from tokenweir.core.spec import Trim

S = 1_000_000_000


def columns(
    sent: list[float], end: list[float] | None = None, recompiles: list[float] | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    starts = np.array(sent)
    return {
        "sent_ns": starts,
        "scheduled_ns": np.nan_to_num(starts, nan=5 * S),
        "end_ns": starts + S if end is None else np.array(end),
        "recompiles": np.full(len(sent), np.nan) if recompiles is None else np.array(recompiles),
    }


TEN = columns([float(second * S) for second in range(10)])


def names(phases: npt.NDArray[np.int8]) -> list[str]:
    return [PHASES[int(phase)][0] for phase in phases]


def test_untrimmed_is_from_first_send_to_last_byte() -> None:
    phases, window = assign_phases(TEN, warmup=Trim(), cooldown=Trim())
    assert "".join(names(phases)) == "m" * 10
    assert window == Window(start_ns=0, end_ns=10 * S, trimmed=False)


def test_times_count_from_the_start_and_to_the_last_byte() -> None:
    phases, window = assign_phases(TEN, warmup=Trim(ns=2 * S), cooldown=Trim(ns=3 * S))
    assert "".join(names(phases)) == "wwmmmmmccc"
    assert window == Window(start_ns=2 * S, end_ns=7 * S, trimmed=True)
    _, window = assign_phases(TEN, warmup=Trim(ns=2 * S), cooldown=Trim(), start_ns=-S)
    assert window.start_ns == S


def test_requests_count_in_order_of_sending() -> None:
    backwards = {name: values[::-1].copy() for name, values in TEN.items()}
    phases, window = assign_phases(backwards, warmup=Trim(requests=3), cooldown=Trim(requests=2))
    assert "".join(names(phases)) == "ccmmmmmwww"
    assert window == Window(start_ns=3 * S, end_ns=8 * S, trimmed=True)


def test_a_trim_longer_than_the_load_leaves_an_empty_window() -> None:
    for trim in (Trim(ns=60 * S), Trim(requests=60)):
        phases, window = assign_phases(TEN, warmup=trim, cooldown=trim)
        assert "m" not in names(phases)
        assert window.start_ns == window.end_ns
        phases, window = assign_phases(TEN, warmup=Trim(), cooldown=trim)
        assert names(phases) == ["c"] * 10


def test_recompiled_requests_are_named_and_unsent_ones_stand_where_they_should() -> None:
    made = columns([0.0, S, math.nan], recompiles=[0, 2, math.nan])
    phases, _ = assign_phases(made, warmup=Trim(), cooldown=Trim(ns=2 * S))
    assert names(phases) == ["m", "r", "c"]


def test_no_rows() -> None:
    phases, window = assign_phases(columns([]), warmup=Trim(ns=S), cooldown=Trim(), start_ns=7)
    assert len(phases) == 0
    assert window == Window(start_ns=7, end_ns=7, trimmed=False)


TRIMS = st.one_of(st.builds(Trim, ns=st.integers(0, 30 * S)), st.builds(Trim, requests=st.integers(0, 30)))


@given(st.lists(st.floats(0, 20 * S), min_size=1, max_size=30), TRIMS, TRIMS)
def test_measured_requests_are_sent_inside_the_window(
    sent: list[float], warmup: Trim, cooldown: Trim
) -> None:
    made = columns([float(round(time)) for time in sent])
    phases, window = assign_phases(made, warmup=warmup, cooldown=cooldown)
    measured = made["sent_ns"][phases == PHASES.index("measured")]
    assert window.start_ns <= window.end_ns
    assert ((measured >= window.start_ns) & (measured <= window.end_ns)).all()

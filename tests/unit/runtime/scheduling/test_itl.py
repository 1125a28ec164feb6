from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.runtime.bridge.messages import Stepped
from tokenweir.runtime.scheduling.itl import ItlWindow


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 40)), min_size=1, max_size=60))
def test_the_p95_is_numpys_over_every_token(steps: list[tuple[int, int]]) -> None:
    window = ItlWindow(window_ns=10**12)
    gaps: list[int] = []
    for gap_ns, tokens in steps:
        window.observe(Stepped(model="m", streams=(), step_ns=gap_ns, decoded=tokens, running=tokens), 0)
        gaps += [gap_ns] * tokens
    assert window.tokens(0) == len(gaps)
    found = window.p95_ns(0)
    assert found is not None
    assert abs(found - float(np.percentile(gaps, 95))) <= 1


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = ItlWindow(window_ns=100)
    window.observe(Stepped(model="m", streams=(), step_ns=7, decoded=1, running=1), 0)
    window.observe(Stepped(model="m", streams=(), step_ns=9, decoded=1, running=1), 60)
    assert window.p95_ns(101) == 9
    assert window.p95_ns(161) is None

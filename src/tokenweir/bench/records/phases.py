"""Which requests are warm-up, measured and cool-down, and the window between."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from tokenweir.bench.records.columns import PHASES
from tokenweir.bench.records.model import Window
from tokenweir.core.metrics.base import Columns
from tokenweir.core.spec import Trim

WARMUP: Final = PHASES.index("warmup")
MEASURED: Final = PHASES.index("measured")
COOLDOWN: Final = PHASES.index("cooldown")
RECOMPILED: Final = PHASES.index("recompiled")

PHASE_COLUMNS: Final = ("scheduled_ns", "sent_ns", "end_ns", "recompiles")


def assign_phases(
    columns: Columns, *, warmup: Trim, cooldown: Trim, start_ns: int | None = None
) -> tuple[npt.NDArray[np.int8], Window]:
    """Return each row's place in ``PHASES``, and the measured window.

    ``columns`` are ``PHASE_COLUMNS`` of one load point, in any order; ``start_ns`` is when the load began
    (first send when absent). Warm-up of n requests ends as request n + 1 is sent; warm-up of a time counts
    from the start. Cool-down of n requests begins as the first of them is sent; cool-down of a time ends with
    the last byte. A request belongs to the phase in which it was sent, or should have been.
    """
    sent, scheduled, end = columns["sent_ns"], columns["scheduled_ns"], columns["end_ns"]
    when = np.where(np.isnan(sent), scheduled, sent)
    n = len(when)
    phases = np.full(n, MEASURED, np.int8)
    if n == 0:
        return phases, Window(start_ns=start_ns or 0, end_ns=start_ns or 0, trimmed=False)
    first, last = float(np.min(when)), float(np.fmax.reduce(np.concatenate([end, when])))
    order = np.argsort(when, kind="stable")
    begin, stop = first, last
    if warmup.requests:
        phases[order[: warmup.requests]] = WARMUP
        begin = float(when[order[warmup.requests]]) if warmup.requests < n else last
    elif warmup.ns:
        begin = (first if start_ns is None else start_ns) + warmup.ns
        phases[when < begin] = WARMUP
    if cooldown.requests:
        late = order[max(0, n - cooldown.requests) :]
        phases[late[phases[late] == MEASURED]] = COOLDOWN
        stop = float(when[late[0]])
    elif cooldown.ns:
        stop = last - cooldown.ns
        phases[(when >= stop) & (phases == MEASURED)] = COOLDOWN
    phases[(columns["recompiles"] > 0) & (phases == MEASURED)] = RECOMPILED
    trimmed = begin > first or stop < last
    return phases, Window(start_ns=round(begin), end_ns=round(max(begin, stop)), trimmed=trimmed)

"""How many requests were in flight, from when each was sent and ended."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import FloatArray


def flight_integral(sent: FloatArray, end: FloatArray, at: FloatArray) -> FloatArray:
    """Return, for each time in ``at``, the integral of the number in flight up to it (requests × ns).

    ``sent`` and ``end`` are nanoseconds; rows whose ``sent`` is NaN count for nothing, and rows whose ``end``
    is NaN never end.
    """
    return _elapsed(sent[~np.isnan(sent)], at) - _elapsed(end[~np.isnan(sent) & ~np.isnan(end)], at)


def _elapsed(starts: FloatArray, at: FloatArray) -> FloatArray:
    """Return the sum over all starts of the time since, at each of ``at``."""
    ordered = np.sort(starts)
    sums = np.concatenate([np.zeros(1), np.cumsum(ordered)])
    begun = np.searchsorted(ordered, at, side="left")
    return at * begun - sums[begun]


def flight_max(sent: FloatArray, end: FloatArray, start_ns: float, end_ns: float) -> int:
    """Return the most requests in flight at once within [start_ns, end_ns]; an end frees its place first."""
    began = sent[~np.isnan(sent) & (sent <= end_ns)]
    ended = end[~np.isnan(sent) & (end <= end_ns)]
    times = np.concatenate([ended, began])
    steps: npt.NDArray[np.int64] = np.concatenate(
        [np.full(len(ended), -1, np.int64), np.ones(len(began), np.int64)]
    )
    # A stable sort keeps ends before starts of the same instant.
    order = np.argsort(times, kind="stable")
    levels = np.cumsum(steps[order])
    first = int(np.searchsorted(times[order], start_ns, side="left"))
    before = int(levels[first - 1]) if first else 0
    return max(before, int(levels[first:].max(initial=0)))

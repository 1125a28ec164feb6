"""How many requests were in flight, from when each was sent and ended."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import Columns, FloatArray

SEEN = ("sent_ns", "first_byte_ns", "first_token_ns", "last_token_ns", "end_ns")
"""The columns that tell when something of a request was last seen."""


def last_seen(
    columns: Columns, *, cancelled: npt.NDArray[np.bool_], given_up: FloatArray | None = None
) -> FloatArray:
    """Return when each request's flight ended: when it was given up, its last byte, or the last thing seen of it.

    ``given_up`` has NaN for those that were not; without it, cancelled requests were in flight to the end. Reads the
    columns of ``SEEN``; NaN for what was never sent.
    """
    latest = columns["sent_ns"]
    for name in SEEN[1:]:
        latest = np.fmax(latest, columns[name])
    if given_up is not None:
        return np.where(np.isnan(columns["sent_ns"]), np.nan, np.fmax(latest, given_up))
    return np.where(cancelled & np.isnan(columns["end_ns"]), np.inf, latest)


def flight_integral(sent: FloatArray, end: FloatArray, at: FloatArray) -> FloatArray:
    """Return, for each time in ``at``, the integral of the number in flight up to it (requests × ns).

    ``sent`` and ``end`` are nanoseconds; rows whose ``sent`` is NaN count for nothing.
    """
    known = ~np.isnan(sent)
    return elapsed(sent[known], at) - elapsed(end[known], at)


def elapsed(starts: FloatArray, at: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return, for each time in ``at`` (ascending), the weighted sum over earlier starts of the time since.

    A start at infinity never comes.
    """
    place = np.searchsorted(at, starts, side="right")
    weight = np.ones(len(starts)) if weights is None else weights
    mass = np.cumsum(np.bincount(place, weights=weight, minlength=len(at) + 1)[:-1])
    moment = np.cumsum(np.bincount(place, weights=weight * starts, minlength=len(at) + 1)[:-1])
    return at * mass - moment


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
    first = int(np.searchsorted(times[order], start_ns, side="right"))
    before = int(levels[first - 1]) if first else 0
    return max(before, int(levels[first:].max(initial=0)))

"""From an arrival process to the times at which requests should be sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenweir.bench.arrivals.closed import Concurrency
from tokenweir.bench.arrivals.gaps import Constant, Gamma, Normal, Poisson, Uniform
from tokenweir.bench.arrivals.ramp import Ramp
from tokenweir.bench.arrivals.trace import Trace
from tokenweir.core.errors import SpecError
from tokenweir.core.seeds import generator

Arrival: TypeAlias = Concurrency | Constant | Poisson | Gamma | Normal | Uniform | Ramp | Trace
"""One load point's arrival process."""

MAX_REQUESTS: Final = 20_000_000
"""A load point of more requests than this is a mistake in its rate or duration."""

_BLOCK: Final = 65_536


def schedule(
    arrival: Arrival, *, seed: int, load: int, requests: int | None, duration_ns: int | None
) -> npt.NDArray[np.int64]:
    """Return when each request should be sent, in nanoseconds since the load's start, sorted.

    ``requests`` and ``duration_ns`` both bound the load; whichever comes first ends it, and a shorter
    schedule is always the beginning of a longer one. A trace may end before both. For a closed loop the times
    are the earliest starts under its rate cap, and there are none without a cap.

    Raises SpecError when nothing bounds the load, or when it would hold more than ``MAX_REQUESTS``.
    """
    match arrival:
        case Concurrency():
            return _closed(arrival, requests, duration_ns)
        case Trace():
            times = arrival.times_ns()
        case Constant() | Ramp():
            times = _collect(arrival.times_ns, requests, duration_ns)
        case _:
            rng = generator(seed, "arrivals", load)
            times = _cumulate(lambda count: arrival.gaps_ns(rng, count), requests, duration_ns)
    if requests is not None:
        times = times[:requests]
    due = np.rint(times).astype(np.int64)
    return due if duration_ns is None else due[due < duration_ns]


def _closed(arrival: Concurrency, requests: int | None, duration_ns: int | None) -> npt.NDArray[np.int64]:
    if arrival.rate_cap is None:
        return np.empty(0, dtype=np.int64)
    if duration_ns is None:
        return arrival.earliest_ns(_bounded(requests, duration_ns))
    within = math.ceil(duration_ns * arrival.rate_cap / 1e9) + 1
    times = arrival.earliest_ns(_refuse_too_many(within if requests is None else min(requests, within)))
    return times[times < duration_ns]


def _bounded(requests: int | None, duration_ns: int | None) -> int:
    if requests is None and duration_ns is None:
        raise SpecError("nothing ends this load", mend="give --requests or --duration")
    return _refuse_too_many(MAX_REQUESTS if requests is None else requests)


def _refuse_too_many(count: int) -> int:
    if count > MAX_REQUESTS:
        raise SpecError(
            f"a load of more than {MAX_REQUESTS} requests cannot be planned",
            mend="lower its rate, duration or number of requests",
        )
    return count


def _collect(
    times_ns: Callable[[int, int], npt.NDArray[np.float64]], requests: int | None, duration_ns: int | None
) -> npt.NDArray[np.float64]:
    limit = _bounded(requests, duration_ns)
    blocks: list[npt.NDArray[np.float64]] = []
    start, size = 0, min(limit, _BLOCK)
    while start < limit:
        block = times_ns(start, min(size, limit - start))
        blocks.append(block)
        start += block.size
        if duration_ns is not None and block[-1] >= duration_ns:
            break
        size *= 2
    else:
        _refuse_endless(requests)
    return np.concatenate(blocks) if blocks else np.empty(0)


def _cumulate(
    gaps_ns: Callable[[int], npt.NDArray[np.float64]], requests: int | None, duration_ns: int | None
) -> npt.NDArray[np.float64]:
    limit = _bounded(requests, duration_ns)
    blocks: list[npt.NDArray[np.float64]] = []
    drawn, last = 0, 0.0
    while drawn < limit:
        # One fixed block size, because where a block ends decides how its sums are rounded.
        gaps = gaps_ns(_BLOCK)
        if gaps.size == 0:
            continue
        gaps[0] += last
        block = np.cumsum(gaps)
        last = float(block[-1])
        drawn += block.size
        blocks.append(block)
        if duration_ns is not None and last >= duration_ns:
            break
    else:
        _refuse_endless(requests)
    return np.concatenate(blocks) if blocks else np.empty(0)


def _refuse_endless(requests: int | None) -> None:
    if requests is None:
        _refuse_too_many(MAX_REQUESTS + 1)

"""From the kernel's arrival stamps, which are CLOCK_REALTIME, to the monotonic clock; and the steps between them."""

from __future__ import annotations

from typing import Final, cast

import numpy as np
import numpy.typing as npt

MAX_SLEW: Final = 0.0005
"""The kernel slews CLOCK_REALTIME by at most 500 parts per million."""
STEP_FLOOR_NS: Final = 50_000
"""Two measurements of an unmoved offset differ by less than this."""


def steps(clocks: npt.NDArray[np.int64]) -> int:
    """Count the clock steps in rows of (monotonic ns, offset ns).

    A step is a change of the offset faster than the kernel's slew allows.
    """
    elapsed = np.diff(clocks[:, 0]).astype(np.float64)
    moved = np.abs(np.diff(clocks[:, 1])).astype(np.float64)
    return int(np.count_nonzero(moved > elapsed * MAX_SLEW + STEP_FLOOR_NS))


def to_monotonic(real_ns: npt.NDArray[np.int64], clocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Convert CLOCK_REALTIME stamps to CLOCK_MONOTONIC, between measured offsets by straight lines."""
    if not len(real_ns):
        return real_ns
    base = int(clocks[0, 1])
    at = clocks[:, 0] + clocks[:, 1]
    since, known = (real_ns - at[0]).astype(np.float64), (at - at[0]).astype(np.float64)
    change = (clocks[:, 1] - base).astype(np.float64)
    moved = cast("npt.NDArray[np.float64]", np.interp(since, known, change))
    return real_ns - base - np.rint(moved).astype(np.int64)

"""A glimpse of the latencies while a run goes on: histograms in a mapped file, for the live view only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

BINS: Final = 512
PER_OCTAVE: Final = 16
"""Bins are 4.4 % wide and begin at 1 µs."""

Ints = npt.NDArray[np.int64]


class Glimpse:
    """Counts of TTFT and ITL by bin; one writer."""

    def __init__(self, path: Path) -> None:
        self._counts = np.memmap(path, np.int64, "w+", shape=(2, BINS))

    def observe(self, first_ns: Ints, gaps_ns: Ints) -> None:
        """Add times to first token and gaps."""
        for row, values in enumerate((first_ns, gaps_ns)):
            if len(values):
                bins = np.clip(np.log2(np.maximum(values, 1) / 1000) * PER_OCTAVE, 0, BINS - 1).astype(
                    np.int64
                )
                self._counts[row] += np.bincount(bins, minlength=BINS)


def percentile(counts: Ints, percent: float) -> float | None:
    """Return the percentile in ns, at the middle of its bin; ``None`` when nothing was counted."""
    total = int(counts.sum())
    if not total:
        return None
    index = int(np.searchsorted(np.cumsum(counts), total * percent / 100))
    return float(1000 * 2 ** ((index + 0.5) / PER_OCTAVE))


def read_glimpse(path: Path) -> Ints:
    """Return (TTFT, ITL) counts; zeros before there are any."""
    if not path.exists() or path.stat().st_size != 2 * BINS * 8:
        return np.zeros((2, BINS), np.int64)
    return np.fromfile(path, np.int64).reshape(2, BINS)

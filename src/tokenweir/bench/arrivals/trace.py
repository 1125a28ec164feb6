"""An open loop that repeats the times of a recorded trace."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.corpora.traces import load_trace
from tokenweir.core.units import format_number


class Trace(msgspec.Struct, frozen=True):
    """The requests of a trace file at their recorded distances, ``speed`` times as fast.

    ``digest`` is the SHA-256 of the file, so that a record names the trace's content and not where it lay.
    """

    path: str
    digest: str
    speed: float = 1.0

    @property
    def text(self) -> str:
        """The canonical notation: file name without folder, digest, and the speed unless it is 1."""
        speed = "" if self.speed == 1 else f":speed={format_number(self.speed)}"
        return f"trace={Path(self.path).name}:sha256={self.digest}{speed}"

    @property
    def open_loop(self) -> bool:
        """True: sending never waits for answers."""
        return True

    @property
    def asked_rate(self) -> float | None:
        """The trace's mean rate in requests per second; ``None`` where all its requests come at once."""
        times = self.times_ns()
        return None if times[-1] == 0 else (times.size - 1) * 1e9 / float(times[-1])

    def times_ns(self) -> npt.NDArray[np.float64]:
        """Return the time of every request of the trace, the first at 0."""
        return load_trace(self.path).times_ns / self.speed

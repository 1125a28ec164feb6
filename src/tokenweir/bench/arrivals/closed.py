"""The closed loop: a fixed number of requests in flight, each answer makes room for the next request."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.core.units import format_rate


class Concurrency(msgspec.Struct, frozen=True):
    """``slots`` requests in flight; under ``rate_cap`` (per s) request i starts no earlier than i / cap."""

    slots: int
    rate_cap: float | None = None

    @property
    def text(self) -> str:
        """The canonical notation, such as ``concurrency=64@20/s``."""
        cap = "" if self.rate_cap is None else f"@{format_rate(self.rate_cap)}"
        return f"concurrency={self.slots}{cap}"

    @property
    def open_loop(self) -> bool:
        """False: sending waits for answers."""
        return False

    @property
    def asked_rate(self) -> float | None:
        """``None``: the server's speed decides the rate; a cap only bounds it."""
        return None

    def earliest_ns(self, count: int) -> npt.NDArray[np.int64]:
        """Return the earliest starts of ``count`` requests under the cap; empty without one."""
        if self.rate_cap is None:
            return np.empty(0, dtype=np.int64)
        return np.rint(np.arange(count, dtype=np.float64) * (1e9 / self.rate_cap)).astype(np.int64)

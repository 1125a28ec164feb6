"""Which requests are within their service level objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import Columns
from tokenweir.core.metrics.registry import METRICS

_GAPS_NEED: Final = 2
_COUNTED_BY: Final = {"tpot": "output_tokens", "itl_request": "chunks"}


def meets(columns: Columns, slo: Mapping[str, float]) -> npt.NDArray[np.bool_]:
    """Return, for each request, whether it is within every limit of ``slo`` (metric tag: nanoseconds).

    An answer of fewer than two tokens (for ``itl_request``: chunks) has no gap that could be too long and
    meets a limit on gaps; any other undefined value does not count as met.
    """
    met = np.ones(len(columns["sent_ns"]), np.bool_)
    for tag, limit_ns in slo.items():
        within = METRICS[tag].values(columns) <= limit_ns
        if tag in _COUNTED_BY:
            within |= columns[_COUNTED_BY[tag]] < _GAPS_NEED
        met &= within
    return met

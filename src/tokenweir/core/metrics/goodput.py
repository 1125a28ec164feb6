"""Completed requests per second that meet every stated service level objective (SLO)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenweir.core.metrics.base import NAN, Columns, Metric, Totals
from tokenweir.core.metrics.e2el import E2EL
from tokenweir.core.metrics.itl_request import ITL_REQUEST
from tokenweir.core.metrics.tpot import MIN_TOKENS, TPOT
from tokenweir.core.metrics.ttft import TTFT

SLO_METRICS: Final[dict[str, Metric]] = {"ttft": TTFT, "tpot": TPOT, "itl": ITL_REQUEST, "e2el": E2EL}
"""What an SLO may bound; ``itl`` bounds a request's mean gap."""

_COUNTED_BY: Final = {"tpot": "output_tokens", "itl": "chunks"}


def meets(columns: Columns, slo: Mapping[str, float]) -> npt.NDArray[np.bool_]:
    """Return, for each request, whether it is within every limit of ``slo`` (metric name: nanoseconds).

    An answer of fewer than two tokens (chunks for ``itl``) has no gap that could be too long and meets a
    limit on gaps; any other undefined value does not count as met.
    """
    met = np.ones(len(columns["sent_ns"]), np.bool_)
    for name, limit_ns in slo.items():
        within = SLO_METRICS[name].values(columns) <= limit_ns
        if name in _COUNTED_BY:
            within |= columns[_COUNTED_BY[name]] < MIN_TOKENS
        met &= within
    return met


def _rate(totals: Totals) -> float:
    return totals.good / totals.window_s if totals.good is not None and totals.window_s > 0 else NAN


GOODPUT: Final = Metric(
    tag="goodput",
    title="Goodput",
    unit="requests/s",
    direction="higher",
    kind="rate",
    definition="completed requests that meet all stated SLOs / window",
    source="DistServe; vLLM benchmarks/serve.py; aiperf",
    rate=_rate,
)

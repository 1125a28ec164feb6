"""Every metric, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tokenweir.core.metrics.base import Metric
from tokenweir.core.metrics.dispatch_lag import DISPATCH_LAG
from tokenweir.core.metrics.e2el import E2EL
from tokenweir.core.metrics.e2el_scheduled import E2EL_SCHEDULED
from tokenweir.core.metrics.error_rate import ERROR_RATE
from tokenweir.core.metrics.goodput import GOODPUT
from tokenweir.core.metrics.icl import ICL
from tokenweir.core.metrics.interactivity import INTERACTIVITY
from tokenweir.core.metrics.isl import ISL
from tokenweir.core.metrics.itl import ITL
from tokenweir.core.metrics.itl_error import ITL_ERROR
from tokenweir.core.metrics.itl_request import ITL_REQUEST
from tokenweir.core.metrics.osl import OSL
from tokenweir.core.metrics.output_throughput import OUTPUT_THROUGHPUT
from tokenweir.core.metrics.queue_time import QUEUE_TIME
from tokenweir.core.metrics.request_throughput import REQUEST_THROUGHPUT
from tokenweir.core.metrics.total_throughput import TOTAL_THROUGHPUT
from tokenweir.core.metrics.tpot import TPOT
from tokenweir.core.metrics.tpot_from_start import TPOT_FROM_START
from tokenweir.core.metrics.ttft import TTFT
from tokenweir.core.metrics.ttft_error import TTFT_ERROR
from tokenweir.core.metrics.ttft_scheduled import TTFT_SCHEDULED

METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        metric.tag: metric
        for metric in (
            TTFT,
            TTFT_SCHEDULED,
            ITL,
            ITL_REQUEST,
            ICL,
            TPOT,
            TPOT_FROM_START,
            E2EL,
            E2EL_SCHEDULED,
            DISPATCH_LAG,
            INTERACTIVITY,
            QUEUE_TIME,
            ISL,
            OSL,
            REQUEST_THROUGHPUT,
            OUTPUT_THROUGHPUT,
            TOTAL_THROUGHPUT,
            GOODPUT,
            ERROR_RATE,
            TTFT_ERROR,
            ITL_ERROR,
        )
    }
)
"""Metrics by tag."""


def needed(metrics: Mapping[str, Metric] = METRICS) -> tuple[str, ...]:
    """Return the columns that the metrics read, each once, in order of first use."""
    return tuple(dict.fromkeys(name for metric in metrics.values() for name in metric.needs))

"""The client's own error in a gap."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric

ITL_ERROR: Final = Metric(
    tag="itl_error",
    title="ITL error",
    unit="ms",
    direction="lower",
    kind="pooled",
    definition="absolute difference of measured and true gap (simulator only), gaps of `itl` only",
    source="true send times of weir sim",
)

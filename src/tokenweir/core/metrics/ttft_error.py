"""The client's own error in the time of the first token."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric, between

TTFT_ERROR: Final = Metric(
    tag="ttft_error",
    title="TTFT error",
    unit="ms",
    direction="lower",
    kind="request",
    definition="first token received − its true send time (simulator only): the client's error",
    source="true send times of weir sim",
    needs=("true_first_ns", "first_token_ns"),
    formula=between("true_first_ns", "first_token_ns"),
)

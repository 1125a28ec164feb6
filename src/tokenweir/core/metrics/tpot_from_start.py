"""Time per output token with the first token's wait in it: the second formula in use."""

from __future__ import annotations

from typing import Final

import numpy as np

from tokenweir.core.metrics.base import NEVER, Columns, FloatArray, Metric, defined


def _from_start(columns: Columns) -> FloatArray:
    tokens = columns["output_tokens"]
    span = columns["last_token_ns"] - columns["sent_ns"]
    return defined(tokens > 0, span / np.where(tokens > 0, tokens, 1))


TPOT_FROM_START: Final = Metric(
    tag="tpot_from_start",
    title="TPOT from start",
    unit="ms",
    direction="lower",
    kind="request",
    definition=(
        "(last token − send time) / output tokens, per request: the second formula in use, "
        "which includes the first token"
    ),
    source="GuideLLM",
    needs=("sent_ns", "last_token_ns", "output_tokens"),
    if_failed=NEVER,
    formula=_from_start,
)

"""Time per output token after the first."""

from __future__ import annotations

from typing import Final

import numpy as np

from tokenweir.core.metrics.base import NEVER, Columns, FloatArray, Metric, defined

MIN_TOKENS: Final = 2


def time_per_token(columns: Columns) -> FloatArray:
    """Formula: (last token − first token) / (output tokens − 1); undefined below 2 tokens. Nanoseconds."""
    tokens = columns["output_tokens"]
    enough = tokens >= MIN_TOKENS
    steps = np.where(enough, tokens - 1, 1)
    return defined(enough, (columns["last_token_ns"] - columns["first_token_ns"]) / steps)


TPOT: Final = Metric(
    tag="tpot",
    title="TPOT",
    unit="ms",
    direction="lower",
    kind="request",
    definition="(last token − first token) / (output tokens − 1), per request of 2 tokens or more",
    source="OpenTelemetry GenAI time_per_output_token; vLLM benchmarks/serve.py",
    needs=("first_token_ns", "last_token_ns", "output_tokens"),
    if_failed=NEVER,
    formula=time_per_token,
)

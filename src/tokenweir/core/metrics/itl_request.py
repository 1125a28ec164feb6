"""Mean inter-token gap of one request."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NEVER, Columns, FloatArray, Metric, defined


def _mean_gap(columns: Columns) -> FloatArray:
    """Formula: mean of the gaps between chunks, where each chunk was one token.

    Engines count the end-of-text token, which has no text and in some no chunk: one chunk fewer than tokens still
    is a chunk per token. Any other number of chunks means that a gap is no inter-token gap.
    """
    tokens, chunks = columns["output_tokens"], columns["chunks"]
    return defined((chunks == tokens) | (chunks == tokens - 1), columns["icl_mean_ns"])


ITL_REQUEST: Final = Metric(
    tag="itl_request",
    title="ITL per request",
    unit="ms",
    direction="lower",
    kind="request",
    definition="mean of a request's inter-token gaps, per request (what some tools call ITL)",
    source="aiperf inter_token_latency; GuideLLM",
    needs=("chunks", "output_tokens", "icl_mean_ns"),
    if_failed=NEVER,
    formula=_mean_gap,
)

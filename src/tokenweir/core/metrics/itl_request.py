"""Mean inter-token gap of one request."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NEVER, Columns, FloatArray, Metric, defined


def _mean_gap(columns: Columns) -> FloatArray:
    """Formula: mean of the gaps between chunks, where each chunk was one token.

    Engines count the end-of-text token, which has no text and so no chunk: one chunk fewer than tokens still
    is a chunk per token. With fewer chunks than that, a gap held several tokens and is no inter-token gap.
    Where the number of tokens is unknown, a chunk is taken as a token.
    """
    several = columns["chunks"] < columns["output_tokens"] - 1
    return defined(~several, columns["icl_mean_ns"])


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

"""Input sequence length."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric, same

ISL: Final = Metric(
    tag="isl",
    title="ISL",
    unit="tokens",
    direction="none",
    kind="request",
    definition="input tokens, per request",
    source="the server's usage, else the model's own tokenizer",
    needs=("input_tokens",),
    formula=same("input_tokens"),
)

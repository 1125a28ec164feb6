"""Output sequence length."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric, same

OSL: Final = Metric(
    tag="osl",
    title="OSL",
    unit="tokens",
    direction="none",
    kind="request",
    definition="output tokens, per request",
    source="the server's usage, else the model's own tokenizer",
    needs=("output_tokens",),
    formula=same("output_tokens"),
)

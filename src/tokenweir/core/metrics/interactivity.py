"""How many tokens per second one user sees."""

from __future__ import annotations

from typing import Final

import numpy as np

from tokenweir.core.metrics.base import NS_PER_S, Columns, FloatArray, Metric, defined
from tokenweir.core.metrics.tpot import time_per_token


def _tokens_per_second(columns: Columns) -> FloatArray:
    tpot = time_per_token(columns)
    return defined(tpot > 0, NS_PER_S / np.where(tpot > 0, tpot, 1))


INTERACTIVITY: Final = Metric(
    tag="interactivity",
    title="Interactivity",
    unit="tokens/s",
    direction="higher",
    kind="request",
    definition="1 / TPOT, per request",
    source="InferenceX",
    needs=("first_token_ns", "last_token_ns", "output_tokens"),
    if_failed=0.0,
    formula=_tokens_per_second,
)

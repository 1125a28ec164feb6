"""Holm's correction for testing several things at once."""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false finding stays below the level; NaN stays NaN.

    Formula: in ascending order, the running maximum of min(1, (m − k) · p_k), k from 0. Source: Holm 1979.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for k, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - k) * p))
        adjusted[place] = highest
    return adjusted

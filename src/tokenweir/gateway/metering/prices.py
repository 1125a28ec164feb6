"""What tokens cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

_PER: Final = 1_000_000
"""Prices are for a million tokens, and a cost is in millionths of the currency: the two cancel."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The price of a model, in a currency for a million tokens. ``cached`` is that of input found in a cache."""

    model: str
    input: float
    output: float
    cached: float | None = None


class PriceTable:
    """Prices by model; a model without one costs nothing."""

    def __init__(self, prices: Iterable[Price] = (), *, currency: str = "USD") -> None:
        self._prices = {price.model: price for price in prices}
        self.currency = currency if self._prices else ""

    def cost(self, model: str, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """Return the cost in millionths of the currency, rounded up, so that nothing is free by rounding."""
        price = self._prices.get(model)
        if price is None:
            return 0
        cached = min(cached_tokens, input_tokens)
        rate = price.input if price.cached is None else price.cached
        exact = (input_tokens - cached) * price.input + cached * rate + output_tokens * price.output
        return -int(-exact // 1)

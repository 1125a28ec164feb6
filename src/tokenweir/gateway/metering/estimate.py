"""What a request will probably use, before it is known: its prompt, and what its key and model usually answer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

_WEIGHT: Final = 0.1
_SPREAD: Final = 2.0
"""Deviations above the mean that are set aside: enough for most, without locking up quota that nobody uses."""
_MOST: Final = 100_000
_BYTES_PER_TOKEN: Final = 4
"""A common ratio for English text in UTF-8; a tokenizer replaces it where the endpoint names one."""


class _Usual(msgspec.Struct):
    mean: float
    deviation: float


class UsualOutput:
    """Output tokens by key and model: an exponentially weighted mean and mean absolute deviation."""

    def __init__(self, *, default_tokens: int = 512) -> None:
        self._default = default_tokens
        self._usual: OrderedDict[tuple[bytes, str], _Usual] = OrderedDict()

    def note(self, key: bytes, model: str, output_tokens: int) -> None:
        """Learn from a request that completed."""
        usual = self._usual.get((key, model))
        if usual is None:
            self._usual[key, model] = _Usual(mean=output_tokens, deviation=output_tokens / 2)
            if len(self._usual) > _MOST:
                self._usual.popitem(last=False)
            return
        self._usual.move_to_end((key, model))
        off = output_tokens - usual.mean
        usual.mean += _WEIGHT * off
        usual.deviation += _WEIGHT * (abs(off) - usual.deviation)

    def tokens(self, key: bytes, model: str, *, max_tokens: int | None, n: int = 1) -> int:
        """Return the output to set aside for a request, over all its choices, never above ``max_tokens`` each."""
        usual = self._usual.get((key, model))
        expected = self._default if usual is None else round(usual.mean + _SPREAD * usual.deviation)
        # What is noted is a request's whole output, but a single choice is what max_tokens bounds.
        most = expected if max_tokens is None else min(expected, max_tokens * n)
        return max(1, most)


def prompt_tokens(size_bytes: int) -> int:
    """Return a rough count of the tokens of a prompt of so many bytes, for models whose tokenizer is not known."""
    return max(1, -(-size_bytes // _BYTES_PER_TOKEN))

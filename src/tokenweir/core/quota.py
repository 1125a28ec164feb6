"""Limits on use, and the windows they count in: calendar minutes, days and months, UTC."""

from __future__ import annotations

import datetime as dt
from typing import Final, Literal

import msgspec

Unit = Literal["requests", "tokens", "cost"]
"""What is counted. ``tokens`` are input plus output; ``cost`` is in millionths of the price table's currency."""

Window = Literal["minute", "day", "month"]

Scope = Literal["key", "user", "team"]
"""Whose use is counted together."""

_MINUTE_NS: Final = 60_000_000_000
_DAY_NS: Final = 86_400_000_000_000


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """At most ``amount`` of ``unit`` in each ``window`` for the ``subject`` (16 bytes); ``model`` "" is all models."""

    scope: Scope
    subject: bytes
    unit: Unit
    window: Window
    amount: int
    model: str = ""


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """What one request uses, estimated or actual."""

    tokens: int
    cost: int = 0
    requests: int = 1

    def of(self, unit: Unit) -> int:
        """Return the amount in ``unit``."""
        match unit:
            case "requests":
                return self.requests
            case "tokens":
                return self.tokens
            case "cost":
                return self.cost


def window_start(window: Window, at: int) -> int:
    """Return when the window that holds the instant ``at`` began, in Unix ns."""
    match window:
        case "minute":
            return at - at % _MINUTE_NS
        case "day":
            return at - at % _DAY_NS
        case "month":
            day = dt.datetime.fromtimestamp(at // 1_000_000_000, dt.UTC)
            return int(day.replace(day=1, hour=0, minute=0, second=0).timestamp()) * 1_000_000_000


def window_end(window: Window, at: int) -> int:
    """Return when the window that holds the instant ``at`` ends and its count is 0 again, in Unix ns."""
    start = window_start(window, at)
    match window:
        case "minute":
            return start + _MINUTE_NS
        case "day":
            return start + _DAY_NS
        case "month":
            return window_start("month", start + 32 * _DAY_NS)

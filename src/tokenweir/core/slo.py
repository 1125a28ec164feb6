"""Service level objectives: limits that a request must meet to count as goodput."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

import msgspec

from tokenweir.core.errors import InputError
from tokenweir.core.units import format_duration, parse_duration

SLO_TAGS: Final = (
    "ttft",
    "ttft_scheduled",
    "tpot",
    "tpot_from_start",
    "itl_request",
    "e2el",
    "e2el_scheduled",
    "dispatch_lag",
    "queue_time",
)
"""The metrics that have one duration per request, so that a limit can be set on them."""

_POOLED: Final = {"itl": "itl_request", "icl": "itl_request"}


class Slo(msgspec.Struct, frozen=True):
    """Limits in nanoseconds by metric tag; a request meets them when every value is at most its limit."""

    limits_ns: Mapping[str, int] = {}

    @property
    def text(self) -> str:
        """The notation that :func:`parse_slo` reads back, such as ``tpot=25ms,ttft=200ms``."""
        return ",".join(f"{tag}={format_duration(limit)}" for tag, limit in self.limits_ns.items())


def parse_slo(text: str) -> Slo:
    """Return the limits that ``text`` such as ``ttft=200ms,tpot=25ms`` states; empty text states none.

    Raises InputError for an unknown or repeated tag, naming the nearest, and for a limit that is no duration.
    """
    limits: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        tag, equals, value = (part.strip() for part in item.partition("="))
        _check(tag)
        if not equals:
            raise InputError(f"--slo {item} states no limit", mend=f"write {tag}=200ms")
        if tag in limits:
            raise InputError(f"--slo states {tag} twice", mend="keep one of them")
        limits[tag] = parse_duration(value, what=f"--slo {tag}")
    return Slo(dict(sorted(limits.items())))


def _check(tag: str) -> None:
    if tag in SLO_TAGS:
        return
    if tag in _POOLED:
        raise InputError(
            f"--slo {tag}: {tag} has no single value per request",
            mend=f"use {_POOLED[tag]}, the mean of a request, or tpot",
        )
    near = get_close_matches(tag.lower().replace("-", "_"), SLO_TAGS, n=1)
    message = f"--slo knows no metric {tag!r}"
    raise InputError(
        message, mend=f"did you mean {near[0]}?" if near else f"the metrics are {', '.join(SLO_TAGS)}"
    )

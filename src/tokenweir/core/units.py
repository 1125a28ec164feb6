"""Durations, rates and counts as people write them, and back."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from tokenweir.core.errors import InputError

_NS_PER_UNIT: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_S_PER_UNIT: Final = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
_MAX_NS: Final = 2**63 - 1
_NUMBER: Final = r"(?P<number>\d+(?:\.\d+)?|\.\d+)"
_DURATION: Final = re.compile(_NUMBER + r"\s*(?P<unit>[a-zµμ]*)", re.ASCII)
_RATE: Final = re.compile(_NUMBER + r"(?:\s*/\s*(?P<unit>[a-z]+))?", re.ASCII)
_COUNT: Final = re.compile(r"(?P<number>\d[\d_]*)(?:\s*(?:req|reqs|request|requests))?", re.ASCII)


def parse_duration(text: str, *, what: str = "duration") -> int:
    """Return the nanoseconds that ``text`` states: ``50us``, ``200ms``, ``1.5s``, ``2m``, ``1h``, ``0s``.

    ``what`` names the value in the error, such as ``--duration``. Raises InputError for a number without a
    unit, an unknown unit, a fraction of a nanosecond and what is no duration at all.
    """
    plain = text.strip()
    match = _DURATION.fullmatch(plain)
    if match is None:
        raise InputError(
            f"{what} {text!r} is no duration", mend="write a number and a unit, such as 200ms, 1.5s or 2m"
        )
    number, unit = match["number"], match["unit"].replace("μ", "µ")
    if not unit:
        raise InputError(f"{what} {plain} has no unit", mend=f"write {number}s, {number}ms or {number}m")
    if unit not in _NS_PER_UNIT:
        raise InputError(
            f"{what} {plain} has the unknown unit {unit!r}", mend="the units are ns, us, ms, s, m and h"
        )
    ns = Decimal(number) * _NS_PER_UNIT[unit]
    if ns != ns.to_integral_value():
        raise InputError(
            f"{what} {plain} is a fraction of a nanosecond", mend="write a whole number of nanoseconds"
        )
    if ns > _MAX_NS:
        raise InputError(f"{what} {plain} is longer than 292 years", mend="write a shorter one")
    return int(ns)


def format_duration(ns: int) -> str:
    """Return the shortest exact text that :func:`parse_duration` reads back: ``1500000000`` is ``1.5s``.

    Whole minutes and hours stay in their unit (``2m``, ``1h``); a negative duration has a leading minus.
    """
    if ns < 0:
        return "-" + format_duration(-ns)
    if ns == 0:
        return "0s"
    for unit in ("h", "m"):
        if ns % _NS_PER_UNIT[unit] == 0:
            return f"{ns // _NS_PER_UNIT[unit]}{unit}"
    unit = next(unit for unit in ("s", "ms", "us", "ns") if ns >= _NS_PER_UNIT[unit])
    whole, rest = divmod(ns, _NS_PER_UNIT[unit])
    if rest == 0:
        return f"{whole}{unit}"
    digits = str(rest).rjust(len(str(_NS_PER_UNIT[unit])) - 1, "0").rstrip("0")
    return f"{whole}.{digits}{unit}"


def parse_rate(text: str, *, what: str = "rate") -> float:
    """Return the rate per second that ``text`` states: ``20/s``, ``1200/min``, ``3600/h``.

    Raises InputError for a number without a unit, an unknown unit, zero and what is no rate at all.
    """
    plain = text.strip()
    match = _RATE.fullmatch(plain)
    if match is None:
        raise InputError(
            f"{what} {text!r} is no rate", mend="write a number per unit of time, such as 20/s or 1200/min"
        )
    number, unit = match["number"], match["unit"]
    if unit is None:
        raise InputError(f"{what} {plain} has no unit", mend=f"write {number}/s or {number}/min")
    if unit not in _S_PER_UNIT:
        raise InputError(f"{what} {plain} has the unknown unit {unit!r}", mend="write it per s, min or h")
    return float(number) / _S_PER_UNIT[unit]


def format_rate(per_s: float) -> str:
    """Return ``per_s`` as :func:`parse_rate` reads it back exactly, always per second."""
    return f"{format_number(per_s)}/s"


def format_number(value: float) -> str:
    """Return ``value`` in plain notation that reads back exactly: ``20``, ``0.5``."""
    return f"{int(value)}" if float(value).is_integer() else format(Decimal(repr(float(value))), "f")


def parse_count(text: str, *, what: str = "count") -> int:
    """Return the whole number that ``text`` states: ``512``, ``10_000`` or ``32req``. Raises InputError."""
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{what} {text!r} is no whole number", mend="write one such as 512")
    return int(match["number"])

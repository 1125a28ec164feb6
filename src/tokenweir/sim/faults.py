"""Faults to order: what goes wrong, where in an answer, and in which requests."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from tokenweir.core.errors import ConfigError, InputError
from tokenweir.core.units import parse_duration

KINDS: Final = {
    "slow-headers": "the first line of the header at once, the rest after `for`",
    "stall": "nothing for `for` before token `after`, then on as before",
    "disconnect": "the connection closes before token `after`",
    "reset": "the connection is reset before token `after`",
    "malformed": "an event that is no JSON before token `after`",
    "error": "an error object inside the 200 answer before token `after`, and no more",
    "no-finish": "the stream ends at its last token: no finish_reason, no usage, no [DONE]",
    "no-done": "the stream lacks its [DONE]",
    "wrong-usage": "token counts multiplied by `factor`",
    "not-sse": "an HTML page with status 200",
    "content-type": "the right body under the content type `value`",
    "close": "the connection closes before any answer",
}
"""Every fault that is no status, and what it does. A status from 400 to 599 is a fault too."""

_FIRST_STATUS: Final = 400
_LAST_STATUS: Final = 599
_NS_PER_S: Final = 1_000_000_000


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing going wrong. ``kind`` is a key of :data:`KINDS` or ``status``."""

    kind: str
    status: int = 0
    after: int = 0
    for_ns: int = _NS_PER_S
    retry_after: str | None = None
    factor: float = 2.0
    value: str = "application/json"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A fault and the requests it befalls: a share of them, the ``nth``, or every ``every``-th."""

    fault: Fault
    rate: float = 0.0
    nth: int = 0
    every: int = 0


def parse_fault(text: str) -> Fault:
    """Return the fault that ``KIND;name=value;…`` states. Raises ConfigError."""
    kind, *parts = (part.strip() for part in text.split(";"))
    fields: dict[str, object] = {"kind": kind}
    if kind.isascii() and kind.isdigit() and _FIRST_STATUS <= int(kind) <= _LAST_STATUS:
        fields = {"kind": "status", "status": int(kind)}
    elif kind not in KINDS:
        raise ConfigError(
            f"fault {kind!r} is not known",
            mend=f"write a status from 400 to 599 or one of {', '.join(KINDS)}",
        )
    for part in parts:
        name, equals, value = part.partition("=")
        try:
            fields |= _option(name.strip(), value.strip() if equals else None)
        except (InputError, ValueError) as error:
            raise ConfigError(
                f"fault option {part!r} cannot be used: {error}",
                mend="write after=TOKENS, for=DURATION, retry-after=SECONDS, factor=NUMBER or value=TEXT",
            ) from None
    return msgspec.convert(fields, Fault)


def _option(name: str, value: str | None) -> dict[str, object]:
    if value is None:
        raise ValueError("it has no value")
    match name:
        case "after":
            return {"after": int(value)}
        case "for":
            return {"for_ns": parse_duration(value, what="for")}
        case "retry-after":
            return {"retry_after": value}
        case "factor":
            return {"factor": float(value)}
        case "value":
            return {"value": value}
        case _:
            raise ValueError(f"{name!r} is not known")


def parse_rule(text: str) -> Rule:
    """Return the rule that ``FAULT@0.01`` (a share), ``FAULT@#7`` or ``FAULT@every=100`` states.

    ``FAULT`` alone befalls every request. Raises ConfigError.
    """
    what, at, when = text.rpartition("@")
    try:
        if not at:
            return Rule(fault=parse_fault(when), rate=1.0)
        if when.startswith("#"):
            return Rule(fault=parse_fault(what), nth=_positive(when[1:]))
        if when.startswith("every="):
            return Rule(fault=parse_fault(what), every=_positive(when.removeprefix("every=")))
        return Rule(fault=parse_fault(what), rate=_share(when))
    except ValueError as error:
        raise ConfigError(
            f"fault {text!r} cannot be used: {error}",
            mend="write FAULT@0.01 for a share of requests, FAULT@#7 for the 7th, FAULT@every=100",
        ) from None


def _share(text: str) -> float:
    share = float(text)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{text} is no share of 1")
    return share


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{text} is not above zero")
    return number


class FaultPlan:
    """Decides which request suffers what; the same seed and order of requests give the same faults."""

    __slots__ = ("_rng", "_rules")

    def __init__(self, texts: tuple[str, ...], *, seed: int) -> None:
        self._rules = tuple(parse_rule(text) for text in texts)
        self._rng = random.Random(f"faults:{seed}")

    def pick(self, number: int) -> Fault | None:
        """Return the fault of request ``number`` (from 1), the first rule that applies."""
        chosen: Fault | None = None
        for rule in self._rules:
            # Every rate draws for every request, so that one rule does not shift another's choices.
            hit = rule.rate > 0 and self._rng.random() < rule.rate
            hit = hit or number == rule.nth or (rule.every > 0 and number % rule.every == 0)
            if hit and chosen is None:
                chosen = rule.fault
        return chosen

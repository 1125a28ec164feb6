"""The states of the scheduler, of a whole and of one model: each says what is done to load, none is a boolean."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Step = Literal["shrink", "shed", "refuse"]
"""How far a degraded scheduler goes; each step includes those before it."""


class Enabled(msgspec.Struct, frozen=True, kw_only=True, tag="enabled"):
    """Everything is admitted that fits."""


class Degraded(msgspec.Struct, frozen=True, kw_only=True, tag="degraded"):
    """The ITL was above its target, and load is taken away: smaller steps, then background work, then new requests."""

    step: Step
    reason: str


class Bypass(msgspec.Struct, frozen=True, kw_only=True, tag="bypass"):
    """Everything is handed to the engine at once."""


class Draining(msgspec.Struct, frozen=True, kw_only=True, tag="draining"):
    """What was taken on is finished, nothing more is taken on."""


State: TypeAlias = Enabled | Degraded | Bypass | Draining


def severity(state: State) -> int:
    """Return a number that grows with what the state takes away, so that many can be summed up by the worst."""
    match state:
        case Bypass():
            return 0
        case Enabled():
            return 1
        case Degraded(step=step):
            return {"shrink": 2, "shed": 3, "refuse": 4}[step]
        case Draining():
            return 5

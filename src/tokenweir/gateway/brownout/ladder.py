"""Which rung of the ladder stands, by how hard the service is pressed. Sans-IO and pure: time is passed in.

::

    Normal ──pressure ≥ enter of rung 1──▶ Pressed(1) ──≥ enter of rung 2, after rung 1's dwell──▶ Pressed(2) …
      ▲                                      │    ▲
      │                              ≤ leave │    │ > leave
      │                                      ▼    │
      └──────calm for the rung's dwell────── Easing(1) ◀──calm for the rung's dwell── Easing(2) …

Pressure is 1 where a service level objective is just met. Between ``leave`` and ``enter`` nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, assert_never

import msgspec


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """When a rung is entered and left, in pressure, ``leave`` below ``enter``.

    It stands for at least ``dwell_ns`` before the next is climbed, and is left when the pressure has been at most
    ``leave`` for that long.
    """

    enter: float
    leave: float
    dwell_ns: int


class Normal(msgspec.Struct, frozen=True, kw_only=True, tag="normal"):
    """All is given that is asked for."""


class Pressed(msgspec.Struct, frozen=True, kw_only=True, tag="pressed"):
    """The first ``rung`` rungs hold since ``since_ns``, the last of them."""

    rung: int
    since_ns: int


class Easing(msgspec.Struct, frozen=True, kw_only=True, tag="easing"):
    """The same, while the pressure has been low since ``calm_since_ns``; if it stays so, the last rung is left."""

    rung: int
    since_ns: int
    calm_since_ns: int


LadderState: TypeAlias = Normal | Pressed | Easing


def rung_of(state: LadderState) -> int:
    """Return how many rungs hold."""
    return 0 if isinstance(state, Normal) else state.rung


def after(state: LadderState, pressure: float, now_ns: int, thresholds: Sequence[Threshold]) -> LadderState:
    """Return the state after a look at the pressure. Times are monotonic nanoseconds and do not go back.

    At most one rung is entered or left by one look.
    """
    match state:
        case Normal():
            entered = bool(thresholds) and pressure >= thresholds[0].enter
            return Pressed(rung=1, since_ns=now_ns) if entered else state
        case Pressed(rung=rung, since_ns=since_ns):
            here = thresholds[rung - 1]
            if pressure <= here.leave:
                return Easing(rung=rung, since_ns=since_ns, calm_since_ns=now_ns)
            climbs = rung < len(thresholds) and pressure >= thresholds[rung].enter
            if climbs and now_ns - since_ns >= here.dwell_ns:
                return Pressed(rung=rung + 1, since_ns=now_ns)
            return state
        case Easing(rung=rung, since_ns=since_ns, calm_since_ns=calm_since_ns):
            here = thresholds[rung - 1]
            if pressure > here.leave:
                return after(Pressed(rung=rung, since_ns=since_ns), pressure, now_ns, thresholds)
            if now_ns - calm_since_ns < here.dwell_ns:
                return state
            return _below(rung, pressure, now_ns, thresholds)
        case _:
            assert_never(state)


def _below(rung: int, pressure: float, now_ns: int, thresholds: Sequence[Threshold]) -> LadderState:
    """Return the state one rung lower, which is eased from at once where the pressure is low for it too."""
    if rung == 1:
        return Normal()
    if pressure <= thresholds[rung - 2].leave:
        return Easing(rung=rung - 1, since_ns=now_ns, calm_since_ns=now_ns)
    return Pressed(rung=rung - 1, since_ns=now_ns)

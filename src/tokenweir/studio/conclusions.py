"""From contrasts to outcomes and one line: what the comparison says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tokenweir.core.stats.holm import holm
from tokenweir.studio.findings import Contrast, LoadComparison, Outcome, Side

SPEED: Final = (
    "tpot",
    "ttft",
    "e2el",
    "output_throughput",
    "itl_request",
    "ttft_scheduled",
    "e2el_scheduled",
    "interactivity",
    "tpot_from_start",
    "request_throughput",
    "total_throughput",
    "goodput",
    "queue_time",
)
"""The metrics that make a run faster or slower, in the order in which a verdict names them."""

_FAMILIES: Final = (
    ("tpot", "itl_request", "interactivity", "tpot_from_start"),
    ("ttft", "ttft_scheduled"),
    ("e2el", "e2el_scheduled"),
    ("output_throughput", "total_throughput"),
)
"""Metrics that tell of the same thing: a verdict names one of each."""

_NAMED: Final = 3
_LARGE: Final = 100


def decide(loads: Sequence[LoadComparison], confidence: float) -> tuple[LoadComparison, ...]:
    """Correct the p-values for all tests of two runs (Holm) and state each metric's outcome."""
    contrasts = [contrast for load in loads for contrast in load.contrasts]
    adjusted = iter(holm([math.nan if one.p_value is None else one.p_value for one in contrasts]))
    decided: list[LoadComparison] = []
    for load in loads:
        done = tuple(_outcome(contrast, next(adjusted), confidence) for contrast in load.contrasts)
        decided.append(msgspec.structs.replace(load, contrasts=done))
    return tuple(decided)


def _outcome(contrast: Contrast, p_holm: float, confidence: float) -> Contrast:
    if math.isnan(p_holm):
        return contrast
    outcome: Outcome = "no difference detected"
    if p_holm < 1 - confidence:
        rise = (contrast.main.change or 0) > 0
        better = contrast.direction == ("higher" if rise else "lower")
        outcome = "different" if contrast.direction == "none" else "better" if better else "worse"
    return msgspec.structs.replace(contrast, p_holm=p_holm, outcome=outcome)


def verdict(b: str, loads: Sequence[LoadComparison], confidence: float) -> str:
    """Return one line on run ``b`` (its letter) against A."""
    every = [(load, contrast) for load in loads for contrast in load.contrasts]
    if all(contrast.outcome == "not evaluated" for _, contrast in every):
        reasons = [load.note for load in loads if load.note]
        reasons += [contrast.note for _, contrast in every if contrast.note]
        return "not evaluated" + (f": {reasons[0]}" if reasons else ": there is nothing to compare")
    ranked = sorted(every, key=_importance)
    speed = [found for found in ranked if found[1].metric in SPEED]
    better = [found for found in speed if found[1].outcome == "better"]
    worse = [found for found in speed if found[1].outcome == "worse"]
    several = len(loads) > 1
    if better and worse:
        named = _named([better[0], worse[0]], several=several)
        line = f"{b} is faster in some and slower in other respects: {named}"
    elif better or worse:
        line = f"{b} is {'faster' if better else 'slower'}: {_named(better or worse, several=several)}"
    else:
        line = f"no difference detected{_detectable(speed, confidence)}"
    return line + _others(ranked, b, several=several) + _doubt(loads)


def _importance(found: tuple[LoadComparison, Contrast]) -> tuple[int, int]:
    load, contrast = found
    place = SPEED.index(contrast.metric) if contrast.metric in SPEED else len(SPEED)
    return (place, load.index)


def _named(found: Iterable[tuple[LoadComparison, Contrast]], *, several: bool) -> str:
    """Name one metric of each family, at the load point where it comes first."""
    chosen: dict[str, str] = {}
    for load, contrast in found:
        where = f" at {load.arrival}" if several else ""
        chosen.setdefault(_family(contrast.metric), f"{contrast.title} {effect(contrast)}{where}")
    return "; ".join(list(chosen.values())[:_NAMED])


def _family(tag: str) -> str:
    return next((family[0] for family in _FAMILIES if tag in family), tag)


def effect(contrast: Contrast) -> str:
    """Return the change with interval and n: ``−12.3 % [−13.0, −11.6], n = 512 pairs``."""
    main = contrast.main
    if contrast.unit == "ratio":
        body = f"{_points(main.change)} [{_points(main.low)}, {_points(main.high)}] percentage points"
    elif main.percent is None or main.percent_low is None:
        body = f"{signed(main.change)} [{signed(main.low)}, {signed(main.high)}] {contrast.unit}"
    else:
        body = f"{signed(main.percent)} % [{signed(main.percent_low)}, {signed(main.percent_high)}]"
    count = f"{contrast.n} pairs" if contrast.paired else f"{contrast.n_a} and {contrast.n_b}"
    return f"{body}, n = {count}"


def signed(value: float | None) -> str:
    """Return a number with its sign, to three digits or so; ``?`` where there is none."""
    if value is None:
        return "?"
    size = abs(value)
    digits = 0 if size >= _LARGE else 1 if size >= 1 or size == 0 else 2 if size * _LARGE >= 1 else 4
    return f"{value:+.{digits}f}".replace("-", "−")


def _points(value: float | None) -> str:
    return signed(None if value is None else 100 * value)


def _detectable(speed: Sequence[tuple[LoadComparison, Contrast]], confidence: float) -> str:
    found: dict[str, str] = {}
    for _, contrast in speed:
        if contrast.outcome != "not evaluated" and contrast.detectable_percent is not None:
            found.setdefault(
                _family(contrast.metric), f"{contrast.title} ±{contrast.detectable_percent:.2g} %"
            )
    if not found:
        return ""
    names = ", ".join(list(found.values())[:_NAMED])
    return f"; smallest detectable: {names} ({100 * confidence:.4g} % confidence, 80 % power)"


def _doubt(loads: Sequence[LoadComparison]) -> str:
    letters = sorted({letter for load in loads for letter in load.client_bound})
    if not letters:
        return ""
    verb = "is" if len(letters) == 1 else "are"
    return f"; but {' and '.join(letters)} {verb} client-bound, so this may be the client's doing"


def _others(ranked: Sequence[tuple[LoadComparison, Contrast]], b: str, *, several: bool) -> str:
    parts: list[str] = []
    for word, outcome in (("less", "better"), ("more", "worse")):
        errors = [
            found for found in ranked if found[1].metric == "error_rate" and found[1].outcome == outcome
        ]
        if errors:
            parts.append(f"; {b} fails {word} often: {_named(errors, several=several)}")
    return "".join(parts)


def warnings(a: Side, b: Side, loads: Sequence[LoadComparison]) -> tuple[str, ...]:
    """Return what qualifies a verdict, worst first."""
    found: list[str] = []
    for side in (a, b):
        bound = [load.arrival for load in loads if side.letter in load.client_bound]
        if bound:
            reasons = next(
                load.client_bound[side.letter] for load in loads if side.letter in load.client_bound
            )
            found.append(
                f"{side.letter} is client-bound at {', '.join(bound)}: its numbers may speak of the client "
                f"({reasons[0] if reasons else 'no reason is recorded'})"
            )
    found += [
        f"{side.letter} is unattributed: its backend commit or model revision is unknown"
        for side in (a, b)
        if not side.attributed
    ]
    found += [f"{side.letter} was {side.status}" for side in (a, b) if side.status != "completed"]
    for load in loads:
        share = load.answers.share
        if share is not None and share < 1:
            found.append(
                f"answers changed at {load.arrival}: {100 * share:.1f} % of {load.answers.compared} pairs are equal"
            )
    return tuple(found)

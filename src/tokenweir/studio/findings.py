"""What a comparison found: plain data, the same for the terminal, ``--json`` and pages."""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal["better", "worse", "different", "no difference detected", "not evaluated"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One statistic of a metric in both runs, in the metric's unit, and its change b − a with an interval.

    ``percent`` and its interval are relative to a. ``None`` is not evaluated.
    """

    statistic: str
    a: float | None
    b: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    percent: float | None = None
    percent_low: float | None = None
    percent_high: float | None = None


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """One metric at one load point.

    ``n`` is the number of pairs where ``paired``, else of values of both runs; ``method`` says where the
    interval of the first change comes from. ``p_value`` tests that change, ``p_holm`` is corrected for all
    tests of the comparison and decides ``outcome``. ``mann_whitney_p`` takes requests as independent.
    ``detectable`` is the smallest change that would have been found with 80 % power, in the unit and in
    percent of a.
    """

    metric: str
    title: str
    unit: str
    direction: Literal["lower", "higher", "none"]
    definition: str
    paired: bool
    n: int
    n_a: int
    n_b: int
    method: str
    changes: tuple[Change, ...]
    p_value: float | None = None
    p_holm: float | None = None
    mann_whitney_p: float | None = None
    detectable: float | None = None
    detectable_percent: float | None = None
    outcome: Outcome = "not evaluated"
    note: str = ""

    @property
    def main(self) -> Change:
        """The change that is tested: of the mean or of the rate."""
        return self.changes[0]


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the same samples were answered alike: ``equal`` of ``compared`` pairs with a known answer."""

    compared: int
    equal: int

    @property
    def share(self) -> float | None:
        """The share of equal answers; ``None`` where none was compared."""
        return self.equal / self.compared if self.compared else None


class LoadComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One load point in both runs. ``pairs`` have a measured request of one sample and repeat on both sides.

    ``client_bound`` names the sides (``A``, ``B``) whose numbers speak of the client, with the reasons.
    """

    index: int
    arrival: str
    pairs: int
    answers: Answers
    client_bound: dict[str, tuple[str, ...]]
    contrasts: tuple[Contrast, ...]
    note: str = ""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the compared runs. ``letter`` names it in verdicts; A is what the others are compared with."""

    letter: str
    run_id: str
    path: str
    backend: str
    model: str
    attributed: bool
    status: str
    labels: dict[str, str]
    subject: dict[str, str]


class PairComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs: ``verdict`` in one line, then each load point. ``warnings`` qualify the verdict."""

    a: Side
    b: Side
    verdict: str
    warnings: tuple[str, ...]
    loads: tuple[LoadComparison, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The first run against each of the others."""

    confidence: float
    workload_hash: str
    measurement_hash: str
    comparisons: tuple[PairComparison, ...]

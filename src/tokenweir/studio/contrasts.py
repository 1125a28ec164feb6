"""The difference of one metric between two runs at one load point, with what is known of its certainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.records.flight import elapsed
from tokenweir.bench.records.model import MetricSummary, Summary
from tokenweir.core.metrics.base import NS_PER_S, FloatArray, Metric
from tokenweir.core.metrics.objectives import meets
from tokenweir.core.stats.bootstrap import Resampling, paired_bootstrap
from tokenweir.core.stats.clusters import Labels, clustered_mean, rank_inflation
from tokenweir.core.stats.estimates import (
    Estimate,
    Interval,
    difference,
    interval_difference,
    relative_difference,
)
from tokenweir.core.stats.mannwhitney import mann_whitney_sorted
from tokenweir.core.stats.paired import mcnemar, paired_difference, paired_relative, widest
from tokenweir.core.stats.percentiles import quantile_interval, sorted_percentiles
from tokenweir.core.stats.proportions import share_difference, share_p_value
from tokenweir.studio.compared_rows import Rowset
from tokenweir.studio.findings import Change, Contrast

Places = npt.NDArray[np.intp]

PERCENTS: Final = (50, 90, 99)
LEAST_PAIRS: Final = 8
LEAST_SAMPLES: Final = 8
BOOTSTRAP_PAIRS: Final = 200
POWER: Final = 0.8
_BLOCK_EVENTS: Final = 8
_BLOCKS: Final = 30
_LEAST_BLOCKS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One load point in both runs, with its pairs, and how sure one wants to be."""

    a: Rowset
    b: Rowset
    summary_a: Summary
    summary_b: Summary
    pairs_a: Places
    pairs_b: Places
    confidence: float
    seed: int
    slo: Mapping[str, int]
    failures_as_infinite: bool


def contrast(metric: Metric, trial: Trial) -> Contrast:
    """Compare a metric; what cannot be evaluated says why in its note."""
    if metric.tag == "error_rate":
        return _error_rate(metric, trial)
    match metric.kind:
        case "request":
            return _per_request(metric, trial)
        case "rate":
            return _rate(metric, trial)
        case "pooled":
            note = "the single gaps are not in requests.parquet; itl_request has an interval"
            return _bare(metric, trial, note)


def _bare(metric: Metric, trial: Trial, note: str) -> Contrast:
    """Return what the summaries say, without intervals."""
    one, two = trial.summary_a.metrics.get(metric.tag), trial.summary_b.metrics.get(metric.tag)
    names = ("mean",) if metric.kind == "rate" else ("mean", *(f"p{percent}" for percent in PERCENTS))
    changes = tuple(_point(name, _statistic(one, name), _statistic(two, name)) for name in names)
    n_a, n_b = (found.n if found else 0 for found in (one, two))
    return _contrast(metric, changes=changes, n_a=n_a, n_b=n_b, note=note)


def _statistic(summary: MetricSummary | None, name: str) -> float | None:
    value: object = getattr(summary, name, None)
    return value if isinstance(value, float) else float(value) if isinstance(value, int) else None


def _contrast(
    metric: Metric, *, changes: tuple[Change, ...], n_a: int, n_b: int, method: str = "", note: str = ""
) -> Contrast:
    return Contrast(
        metric=metric.tag,
        title=metric.title,
        unit=metric.unit,
        direction=metric.direction,
        definition=metric.definition,
        paired=False,
        n=n_a + n_b,
        n_a=n_a,
        n_b=n_b,
        method=method,
        changes=changes,
        note=note,
    )


def _per_request(metric: Metric, trial: Trial) -> Contrast:
    values_a, values_b = _values(metric, trial.a, trial), _values(metric, trial.b, trial)
    known_a, known_b = ~np.isnan(values_a), ~np.isnan(values_b)
    n_a, n_b = int(np.count_nonzero(known_a)), int(np.count_nonzero(known_b))
    if min(n_a, n_b) < LEAST_PAIRS:
        return _bare(metric, trial, f"{metric.title} has {n_a} and {n_b} values; {LEAST_PAIRS} are needed")
    sorted_a, sorted_b = np.sort(values_a[known_a]), np.sort(values_b[known_b])
    mean = _mean(metric, trial, values_a, values_b)
    quantiles = _quantiles(trial, (values_a, values_b), (sorted_a, sorted_b))
    rank_test = mann_whitney_sorted(sorted_a, sorted_b)
    return msgspec.structs.replace(
        mean,
        n=mean.n if mean.paired else n_a + n_b,
        n_a=n_a,
        n_b=n_b,
        changes=(*mean.changes, *quantiles),
        mann_whitney_p=plain(rank_test.p_value),
    )


def _values(metric: Metric, rows: Rowset, trial: Trial) -> FloatArray:
    """Return a value per row in the metric's unit; NaN where there is none or it is not measured."""
    values = np.where(rows.measured & rows.completed, metric.values(rows.columns), np.nan) / metric.scale
    counted = not np.all(np.isnan(values)) or not np.any(rows.measured & rows.completed)
    if trial.failures_as_infinite and metric.if_failed is not None and counted:
        values[rows.measured & rows.failed] = metric.if_failed
    return values


def _mean(metric: Metric, trial: Trial, values_a: FloatArray, values_b: FloatArray) -> Contrast:
    """Compare means: of pairs where there are enough, else of each run's blocks of time."""
    both = np.isfinite(values_a[trial.pairs_a]) & np.isfinite(values_b[trial.pairs_b])
    places_a, places_b = trial.pairs_a[both], trial.pairs_b[both]
    if len(places_a) < LEAST_PAIRS:
        return _unpaired_mean(metric, trial, values_a, values_b)
    a, b = values_a[places_a], values_b[places_b]
    notes: list[str] = []
    lost = len(trial.pairs_a) - len(places_a)
    if lost:
        notes.append(f"{lost} pairs have no finite value on one side")
    clusterings, method = _clusterings(trial, places_a, places_b, notes)
    absolute, relative = paired_difference(a, b, clusterings), paired_relative(a, b, clusterings)
    interval = absolute.interval(trial.confidence)
    if len(a) <= BOOTSTRAP_PAIRS and absolute == widest(b - a, []) and absolute.se > 0:
        interval = paired_bootstrap(a, b, Resampling(seed=trial.seed, confidence=trial.confidence))
        method = "pairs, BCa bootstrap"
    change = _change("mean", float(np.mean(a)), float(np.mean(b)), interval)
    change = _with_percent(change, relative, trial.confidence)
    made = _contrast(metric, changes=(change,), n_a=0, n_b=0, method=method, note="; ".join(notes))
    return _tested(msgspec.structs.replace(made, paired=True, n=len(a)), absolute, trial.confidence)


def _clusterings(
    trial: Trial, places_a: Places, places_b: Places, notes: list[str]
) -> tuple[list[Labels], str]:
    """Return the ways in which pairs may depend on each other: by sample, by time in A and by time in B."""
    sample = trial.a.sample[places_a]
    blocks = [trial.a.blocks(places_a), trial.b.blocks(places_b)]
    # Fewer blocks than this tell nothing of the spread between them.
    clusterings = [labels for labels in blocks if labels.max() >= _LEAST_BLOCKS]
    distinct = int(np.count_nonzero(np.bincount(sample)))
    if distinct == len(sample):
        return clusterings, "pairs, clustered by time block"
    if distinct < LEAST_SAMPLES:
        notes.append(f"only {distinct} distinct samples: the interval holds for these samples")
        return clusterings, "pairs, clustered by time block"
    return [sample, *clusterings], "pairs, clustered by sample and by time block"


def _unpaired_mean(metric: Metric, trial: Trial, values_a: FloatArray, values_b: FloatArray) -> Contrast:
    estimates: list[Estimate] = []
    for rows, values in ((trial.a, values_a), (trial.b, values_b)):
        finite = np.flatnonzero(np.isfinite(values))
        estimates.append(clustered_mean(values[finite], rows.blocks(finite)))
    note = "samples do not pair" if not len(trial.pairs_a) else "too few pairs"
    return _from_estimates(metric, trial, (estimates[0], estimates[1]), note)


def _from_estimates(metric: Metric, trial: Trial, of: tuple[Estimate, Estimate], note: str = "") -> Contrast:
    absolute, relative = difference(*of), relative_difference(*of)
    change = _change("mean", of[0].value, of[1].value, absolute.interval(trial.confidence))
    change = _with_percent(change, relative, trial.confidence)
    made = _contrast(
        metric, changes=(change,), n_a=of[0].n, n_b=of[1].n, method="time blocks of each run", note=note
    )
    return _tested(made, absolute, trial.confidence)


def _tested(made: Contrast, absolute: Estimate, confidence: float) -> Contrast:
    base = made.main.a
    least = absolute.detectable(confidence, POWER)
    return msgspec.structs.replace(
        made,
        p_value=plain(absolute.p_value()),
        detectable=plain(least),
        detectable_percent=plain(100 * least / abs(base)) if base else None,
    )


def _quantiles(
    trial: Trial,
    values: tuple[FloatArray, FloatArray],
    ordered: tuple[FloatArray, FloatArray],
) -> tuple[Change, ...]:
    """Compare quantiles by order statistics, whose ranks are widened by what blocks of time show.

    The two estimates move together as far as pairs lie on the same side of both quantiles.
    """
    points: list[FloatArray] = []
    intervals: list[list[Interval]] = []
    for rows, found, ascending in zip((trial.a, trial.b), values, ordered, strict=True):
        known = np.flatnonzero(~np.isnan(found))
        in_time, blocks = found[known], rows.blocks(known)
        cuts = sorted_percentiles(ascending, PERCENTS)
        points.append(cuts)
        intervals.append(
            [
                quantile_interval(
                    ascending, percent, trial.confidence, rank_inflation(in_time, float(cut), blocks)
                )
                for percent, cut in zip(PERCENTS, cuts, strict=True)
            ]
        )
    changes: list[Change] = []
    for place, percent in enumerate(PERCENTS):
        a, b = float(points[0][place]), float(points[1][place])
        of_a, of_b = intervals[0][place], intervals[1][place]
        if not (math.isfinite(a) and math.isfinite(b) and of_a.bounded and of_b.bounded):
            changes.append(_point(f"p{percent}", plain(a), plain(b)))
            continue
        shared = _correlation(trial, values, (a, b))
        change = _change(f"p{percent}", a, b, interval_difference(a, of_a, b, of_b, shared))
        if min(of_a.low, of_b.low) > 0:
            ratio = interval_difference(math.log(a), _log(of_a), math.log(b), _log(of_b), shared)
            change = msgspec.structs.replace(
                change,
                percent_low=100 * math.expm1(ratio.low),
                percent_high=100 * math.expm1(ratio.high),
            )
        changes.append(change)
    return tuple(changes)


def _correlation(trial: Trial, values: tuple[FloatArray, FloatArray], cuts: tuple[float, float]) -> float:
    """Return the correlation of two quantiles: that of being at or below them, over the pairs, at least 0."""
    a, b = values[0][trial.pairs_a], values[1][trial.pairs_b]
    known = ~(np.isnan(a) | np.isnan(b))
    n = int(np.count_nonzero(known))
    if n < LEAST_PAIRS:
        return 0.0
    below_a, below_b = a[known] <= cuts[0], b[known] <= cuts[1]
    share_a, share_b = np.count_nonzero(below_a) / n, np.count_nonzero(below_b) / n
    both = np.count_nonzero(below_a & below_b) / n
    spread = math.sqrt(share_a * (1 - share_a) * share_b * (1 - share_b))
    # Values that have no pair add to each estimate alone.
    sizes = [np.count_nonzero(~np.isnan(found)) for found in values]
    return (
        max(0.0, (both - share_a * share_b) / spread) * n / math.sqrt(sizes[0] * sizes[1]) if spread else 0.0
    )


def _log(interval: Interval) -> Interval:
    return Interval(math.log(interval.low), math.log(interval.high))


def _rate(metric: Metric, trial: Trial) -> Contrast:
    """Compare rates over the window, with the spread between blocks of time."""
    if metric.tag == "goodput" and not trial.slo:
        return _bare(metric, trial, "no SLO is stated")
    estimates: list[Estimate] = []
    for rows, summary in ((trial.a, trial.summary_a), (trial.b, trial.summary_b)):
        found = summary.metrics.get(metric.tag)
        value = _statistic(found, "mean")
        start, end = summary.window.start_ns, summary.window.end_ns
        events = int(np.count_nonzero(_ended(rows, start, end)))
        blocks = min(_BLOCKS, events // _BLOCK_EVENTS)
        if value is None or found is None or blocks < _LEAST_BLOCKS:
            return _bare(metric, trial, f"{events} completions are too few for blocks of time")
        edges = np.linspace(start, end, blocks + 1)
        rates = _amounts(metric, rows, edges, trial.slo) / ((end - start) / blocks / NS_PER_S)
        spread = clustered_mean(rates, np.arange(blocks))
        estimates.append(Estimate(value=value, se=spread.se, df=spread.df, n=found.n))
    return _from_estimates(metric, trial, (estimates[0], estimates[1]))


def _ended(rows: Rowset, start: float, end: float) -> npt.NDArray[np.bool_]:
    at = rows.columns["end_ns"]
    return rows.completed & (at >= start) & (at <= end)


def _amounts(metric: Metric, rows: Rowset, edges: FloatArray, slo: Mapping[str, int]) -> FloatArray:
    """Return how much of what the rate counts came between each two edges.

    Output tokens are spread evenly between a request's first and last: near enough for the spread of blocks.
    """
    inside = _ended(rows, float(edges[0]), float(edges[-1]))
    at = rows.columns["end_ns"]
    if metric.tag == "goodput":
        inside = inside & meets(rows.columns, slo)
    if metric.tag in {"request_throughput", "goodput"}:
        return np.histogram(at[inside], edges)[0].astype(np.float64)
    amounts = _output_tokens(rows, edges)
    if metric.tag == "total_throughput":
        weights = np.nan_to_num(rows.columns["input_tokens"][inside])
        amounts = amounts + np.histogram(at[inside], edges, weights=weights)[0]
    return amounts


def _output_tokens(rows: Rowset, edges: FloatArray) -> FloatArray:
    columns = rows.columns
    first, last, tokens = columns["first_token_ns"], columns["last_token_ns"], columns["output_tokens"]
    spread = (tokens > 1) & (last > first)
    # An answer that was not streamed came whole with its last byte.
    came = np.where(np.isnan(first), columns["end_ns"], first)
    at_once = (tokens > 0) & ~spread & ~np.isnan(came)
    pace = (tokens[spread] - 1) / (last[spread] - first[spread])
    reached = elapsed(first[spread], edges, pace) - elapsed(last[spread], edges, pace)
    steps = np.histogram(first[spread], edges)[0]
    steps = steps + np.histogram(came[at_once], edges, weights=tokens[at_once])[0]
    return np.diff(reached) + steps


def _error_rate(metric: Metric, trial: Trial) -> Contrast:
    """Compare failures: McNemar on pairs, Newcombe's interval, and the wider spread of blocks of time."""
    hits: list[int] = []
    sizes: list[int] = []
    for rows in (trial.a, trial.b):
        hits.append(int(np.count_nonzero(rows.failed & rows.measured)))
        sizes.append(int(np.count_nonzero(rows.measured)))
    if not min(sizes):
        return _bare(metric, trial, "no request was measured")
    counts = (hits[0], sizes[0], hits[1], sizes[1])
    interval = share_difference(*counts, trial.confidence)
    paired = len(trial.pairs_a) >= LEAST_PAIRS
    places = [np.flatnonzero(rows.measured) for rows in (trial.a, trial.b)]
    blocks = [
        clustered_mean(rows.failed[where].astype(np.float64), rows.blocks(where))
        for rows, where in zip((trial.a, trial.b), places, strict=True)
    ]
    blocked = difference(blocks[0], blocks[1])
    if paired:
        test = mcnemar(trial.a.failed[trial.pairs_a], trial.b.failed[trial.pairs_b])
        p_value, method = test.p_value, "McNemar on pairs; Newcombe's interval"
    else:
        p_value, method = share_p_value(*counts), "two shares; Newcombe's interval"
    if blocked.se > 0:
        wide = blocked.interval(trial.confidence)
        if wide.high - wide.low > interval.high - interval.low:
            interval, method = wide, method.replace("Newcombe's interval", "interval from time blocks")
        p_value = max(p_value, blocked.p_value())
    rates = (hits[0] / sizes[0], hits[1] / sizes[1])
    made = _contrast(
        metric,
        changes=(_change("mean", *rates, interval),),
        n_a=sizes[0],
        n_b=sizes[1],
        method=method,
    )
    return msgspec.structs.replace(
        made,
        paired=paired,
        n=len(trial.pairs_a) if paired else sum(sizes),
        p_value=plain(p_value),
        detectable=(interval.high - interval.low) / 2,
    )


def _point(name: str, a: float | None, b: float | None) -> Change:
    """Return a change without an interval."""
    if a is None or b is None:
        return Change(statistic=name, a=a, b=b)
    return Change(statistic=name, a=a, b=b, change=b - a, percent=100 * (b - a) / abs(a) if a else None)


def _change(name: str, a: float, b: float, interval: Interval) -> Change:
    if not interval.bounded:
        return _point(name, a, b)
    return msgspec.structs.replace(_point(name, a, b), low=interval.low, high=interval.high)


def _with_percent(change: Change, relative: Estimate, confidence: float) -> Change:
    interval = relative.interval(confidence)
    if not interval.bounded:
        return change
    return msgspec.structs.replace(change, percent_low=100 * interval.low, percent_high=100 * interval.high)


def plain(value: float) -> float | None:
    """Return a finite number, or ``None``: not evaluated."""
    return float(value) if math.isfinite(value) else None

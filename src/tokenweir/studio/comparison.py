"""Compares runs of the same workload under the same measurement, and refuses any other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, cast

import msgspec
import numpy as np

from tokenweir.bench.records.model import Run
from tokenweir.bench.records.rundir import read_run
from tokenweir.core.errors import InputError, UnlikeError
from tokenweir.core.metrics.base import Metric
from tokenweir.core.metrics.registry import METRICS
from tokenweir.core.requests import Json
from tokenweir.core.spec import difference_table
from tokenweir.core.units import format_duration
from tokenweir.studio.compared_rows import Rowset, columns_of, pair, read_rows
from tokenweir.studio.conclusions import decide, verdict, warnings
from tokenweir.studio.contrasts import Trial, contrast
from tokenweir.studio.findings import Answers, Comparison, Contrast, LoadComparison, PairComparison, Side

DEFAULT_METRICS: Final = (
    "ttft",
    "ttft_scheduled",
    "tpot",
    "itl",
    "itl_request",
    "e2el",
    "e2el_scheduled",
    "osl",
    "request_throughput",
    "output_throughput",
    "goodput",
    "error_rate",
)
"""What is compared unless told: Holm's correction makes each further metric cost certainty."""

_THREADS: Final = 2

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to compare. ``seed`` makes the bootstrap repeatable."""

    metrics: tuple[str, ...] = DEFAULT_METRICS
    confidence: float = 0.95
    seed: int = 0


def compare(paths: Sequence[Path], options: Options) -> Comparison:
    """Compare the first run with each of the others.

    Raises:
        InputError: fewer than two runs, or an unknown metric.
        UnlikeError: workload or measurement differ; ``fields`` names where.
        RecordError: a run directory is missing or damaged.
    """
    if not 1 < len(paths) <= len(LETTERS):
        raise InputError(f"{len(paths)} runs were named", mend="name between 2 and 26 runs to compare")
    metrics = [_metric(tag) for tag in dict.fromkeys(options.metrics)]
    runs = [read_run(path) for path in paths]
    for path, run in zip(paths[1:], runs[1:], strict=True):
        require_alike((paths[0], runs[0]), (path, run))
    sides = [_side(letter, path, run) for letter, path, run in zip(LETTERS, paths, runs, strict=False)]
    names = columns_of(metrics, _slo(runs[0]))
    base = read_rows(paths[0], names)
    return Comparison(
        confidence=options.confidence,
        workload_hash=runs[0].provenance.workload_hash,
        measurement_hash=runs[0].provenance.measurement_hash,
        comparisons=tuple(
            _pair((sides[0], runs[0], base), (side, run, read_rows(path, names)), metrics, options)
            for side, path, run in zip(sides[1:], paths[1:], runs[1:], strict=True)
        ),
    )


def require_alike(a: tuple[Path, Run], b: tuple[Path, Run]) -> None:
    """Refuse runs whose workload or measurement hashes differ.

    Raises:
        UnlikeError: the message and ``fields`` list the JSON paths with both values.
    """
    parts = [
        part
        for part in ("workload", "measurement")
        if getattr(a[1].provenance, f"{part}_hash") != getattr(b[1].provenance, f"{part}_hash")
    ]
    if not parts:
        return
    one: dict[str, Json] = {part: a[1].spec.get(part) for part in parts}
    two: dict[str, Json] = {part: b[1].spec.get(part) for part in parts}
    fields = tuple(
        f"{found.path}: {_shown(found.path, found.left)} against {_shown(found.path, found.right)}"
        for found in difference_table(one, two)
    ) or tuple(f"{part}_hash" for part in parts)
    raise UnlikeError(
        f"{str(a[0])!r} and {str(b[0])!r} may not be compared, they differ in {'; '.join(fields)}",
        fields=fields,
        mend="measure both with the same workload and measurement",
    )


def _shown(path: str, value: Json) -> str:
    duration = path.endswith("_ns") or path.startswith("measurement.slo.")
    if duration and isinstance(value, int) and not isinstance(value, bool):
        return format_duration(value)
    return _json(value)


def _json(value: Json) -> str:
    return msgspec.json.encode(value).decode()


def _metric(tag: str) -> Metric:
    if tag not in METRICS:
        raise InputError(f"there is no metric {tag!r}", mend=f"the metrics are {', '.join(METRICS)}")
    return METRICS[tag]


def _slo(run: Run) -> dict[str, int]:
    measurement = run.spec.get("measurement")
    slo = measurement.get("slo") if isinstance(measurement, dict) else None
    return cast("dict[str, int]", slo) if isinstance(slo, dict) else {}


def _failures_as_infinite(run: Run) -> bool:
    measurement = run.spec.get("measurement")
    return isinstance(measurement, dict) and measurement.get("failures_as_infinite") is True


def _side(letter: str, path: Path, run: Run) -> Side:
    subject = run.spec.get("subject")
    flat: dict[str, str] = {}
    for name, value in subject.items() if isinstance(subject, dict) else ():
        # An engine has hundreds of flags, and a reader looks for the few that differ.
        parts = (
            {f"{name}.{key}": part for key, part in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        flat |= {key: part if isinstance(part, str) else _json(part) for key, part in parts.items()}
    return Side(
        letter=letter,
        run_id=run.run_id,
        path=str(path),
        backend=run.provenance.backend,
        model=run.provenance.model,
        attributed=run.provenance.attributed,
        status=run.status,
        labels=run.labels,
        subject=flat,
    )


Party = tuple[Side, Run, dict[int, Rowset]]


def _pair(a: Party, b: Party, metrics: Sequence[Metric], options: Options) -> PairComparison:
    loads = decide(
        [_load(index, a, b, metrics, options) for index in range(max(len(a[1].loads), len(b[1].loads)))],
        options.confidence,
    )
    return PairComparison(
        a=a[0],
        b=b[0],
        verdict=verdict(b[0].letter, loads, options.confidence),
        warnings=warnings(a[0], b[0], loads),
        loads=loads,
    )


def _load(index: int, a: Party, b: Party, metrics: Sequence[Metric], options: Options) -> LoadComparison:
    found = [{load.index: load for load in run.loads}.get(index) for _, run, _ in (a, b)]
    one, two = found
    known = one or two
    arrival = known.arrival if known else ""
    if one is None or two is None or index not in a[2] or index not in b[2]:
        lacking = b[0].letter if one is not None and index in a[2] else a[0].letter
        return LoadComparison(
            index=index,
            arrival=arrival,
            pairs=0,
            answers=Answers(compared=0, equal=0),
            client_bound={},
            contrasts=(),
            note=f"{lacking} has no requests at {arrival}",
        )
    rows_a, rows_b = a[2][index], b[2][index]
    pairs_a, pairs_b = pair(rows_a, rows_b)
    trial = Trial(
        a=rows_a,
        b=rows_b,
        summary_a=one.summary,
        summary_b=two.summary,
        pairs_a=pairs_a,
        pairs_b=pairs_b,
        confidence=options.confidence,
        seed=options.seed,
        slo=_slo(a[1]),
        failures_as_infinite=_failures_as_infinite(a[1]),
    )
    answers_a, answers_b = rows_a.answer[pairs_a], rows_b.answer[pairs_b]
    both = (answers_a != 0) & (answers_b != 0)
    return LoadComparison(
        index=index,
        arrival=arrival,
        pairs=len(pairs_a),
        answers=Answers(
            compared=int(np.count_nonzero(both)), equal=int(np.count_nonzero(both & (answers_a == answers_b)))
        ),
        client_bound={
            side.letter: load.summary.verdict.reasons
            for side, load in ((a[0], one), (b[0], two))
            if load.summary.verdict.trust == "client-bound"
        },
        contrasts=_contrasts(metrics, trial),
    )


def _contrasts(metrics: Sequence[Metric], trial: Trial) -> tuple[Contrast, ...]:
    # Sorting and counting release the interpreter's lock, so that threads share the work.
    with ThreadPoolExecutor(max_workers=_THREADS) as threads:
        return tuple(threads.map(partial(contrast, trial=trial), metrics))

"""``weir compare``: the difference between runs of the same workload, with intervals and one verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenweir.cli.locate import locate
from tokenweir.core.errors import InputError
from tokenweir.core.metrics.registry import METRICS
from tokenweir.studio.comparison import DEFAULT_METRICS, Options, compare
from tokenweir.studio.conclusions import signed
from tokenweir.studio.findings import Change, Comparison, Contrast, LoadComparison, PairComparison

_COLUMNS = ("metric", "statistic", "A", "B", "change", "change %", "n", "p (Holm)", "rank p", "outcome")
_STYLES = {"better": "green", "worse": "red", "not evaluated": "dim", "different": "yellow"}
_WIDE = 1000
_THOUSAND = 1000


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="A B [MORE]...")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="TAG",
    help="Compare this metric; may be given again; 'all' for every one. Each costs the others certainty.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals, and 1 - the chance of any false finding.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Makes the bootstrap repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def command(
    *, runs: tuple[str, ...], metrics: tuple[str, ...], confidence: float, seed: int, as_json: bool
) -> None:
    """Compare run A with each of the others; a run is a directory, an id or the beginning of one.

    Runs whose workload or measurement differ are refused, with the fields (exit code 3).
    """
    if len(runs) == 1:
        raise InputError(f"{runs[0]!r} alone cannot be compared", mend="name a second run")
    asked = tuple(METRICS) if "all" in metrics else metrics or DEFAULT_METRICS
    found = compare(locate(runs), Options(metrics=asked, confidence=confidence, seed=seed))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        click.echo(render(found, colour=sys.stdout.isatty()), nl=False)


def render(found: Comparison, *, colour: bool) -> str:
    """Return the comparison as text: tables for each load point, warnings, the verdict last."""
    console = Console(
        width=None if colour else _WIDE, force_terminal=colour, color_system="auto" if colour else None
    )
    with console.capture() as captured:
        for one in found.comparisons:
            _write(console, one, found.confidence, colour=colour)
    return captured.get()


def _write(console: Console, one: PairComparison, confidence: float, *, colour: bool) -> None:
    for side in (one.a, one.b):
        labels = "".join(f" {name}={value}" for name, value in sorted(side.labels.items()))
        mark = "" if side.attributed else " (unattributed)"
        console.print(Text(f"{side.letter}: {side.run_id} {side.backend} {side.model}{labels}{mark}"))
    for name in sorted({*one.a.subject, *one.b.subject}):
        left, right = one.a.subject.get(name, ""), one.b.subject.get(name, "")
        if left != right:
            console.print(Text(f"   {name}: {left or 'none'} → {right or 'none'}"))
    for load in one.loads:
        console.print()
        console.print(Text(_heading(load), style="bold" if colour else ""))
        for letter, reasons in load.client_bound.items():
            console.print(
                Text(f"{letter} is client-bound: {'; '.join(reasons)}", style="red" if colour else "")
            )
        if load.contrasts:
            _table(console, load, colour=colour)
            _notes(console, load.contrasts)
        if load.note:
            console.print(Text(f"not evaluated: {load.note}"))
    console.print()
    console.print(
        Text(
            f"Intervals at {100 * confidence:.4g} % confidence. "
            "The outcome is by Holm's p over all metrics and loads; "
            "± is the smallest change that would have been found (80 % power). "
            "Rank p: Mann-Whitney, as though requests were independent."
        )
    )
    for warning in one.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow" if colour else ""))
    console.print(Text(f"Verdict: {one.verdict}", style="bold" if colour else ""))


def _heading(load: LoadComparison) -> str:
    answers = load.answers
    alike = f"; answers equal in {answers.equal} of {answers.compared}" if answers.compared else ""
    return f"{load.arrival}: {load.pairs} pairs{alike}"


def _table(console: Console, load: LoadComparison, *, colour: bool) -> None:
    if not colour:
        _plain_table(console, load)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in {"metric", "statistic", "outcome"} else "right")
    for contrast in load.contrasts:
        for row in _rows(contrast):
            table.add_row(*row[:-1], Text(row[-1], style=_STYLES.get(row[-1], "dim")))
    console.print(table)


def _plain_table(console: Console, load: LoadComparison) -> None:
    rows = [_COLUMNS, *(row for contrast in load.contrasts for row in _rows(contrast))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_COLUMNS))]
    for row in rows:
        cells = [f"{text:{width}}" for text, width in zip(row, widths, strict=True)]
        console.print(Text("  ".join(cells).rstrip()), soft_wrap=True)


def _rows(contrast: Contrast) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    both = f"{contrast.n_a}, {contrast.n_b}"
    for change in contrast.changes:
        first = not rows
        tested = (
            f"{contrast.n} pairs" if contrast.paired else both,
            _p_value(contrast.p_holm),
            _p_value(contrast.mann_whitney_p),
            _outcome(contrast),
        )
        rows.append(
            (
                f"{contrast.title} ({contrast.unit})" if first else "",
                "rate" if METRICS[contrast.metric].kind == "rate" else change.statistic,
                _number(change.a),
                _number(change.b),
                _with_interval(change.change, change.low, change.high),
                _percent(change),
                *(tested if first else (both, "", "", "")),
            )
        )
    return rows


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _outcome(contrast: Contrast) -> str:
    if contrast.outcome != "no difference detected" or contrast.detectable is None:
        return contrast.outcome
    if contrast.detectable_percent is None:
        return f"none detected (±{contrast.detectable:.2g})"
    return f"none detected (±{contrast.detectable_percent:.2g} %)"


def _notes(console: Console, contrasts: Sequence[Contrast]) -> None:
    for contrast in contrasts:
        if contrast.note:
            console.print(Text(f"{contrast.title}: {contrast.note}"), soft_wrap=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) < _THOUSAND else f"{value:.1f}"


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    return signed(value) if low is None else f"{signed(value)} [{signed(low)}, {signed(high)}]"


def _percent(change: Change) -> str:
    if change.percent is None:
        return "–"
    return _with_interval(change.percent, change.percent_low, change.percent_high)

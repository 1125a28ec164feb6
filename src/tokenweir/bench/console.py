"""What a finished run prints: the verdict first, then every number with its unit and n, then what it means."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenweir.bench.closing import Closed
from tokenweir.bench.records.model import LoadResult, MetricSummary, Number, Run
from tokenweir.bench.records.rundir import REPORT_FILE

_WIDE = 200
"""A file has no width to keep to."""
_WHOLE = 10_000
"""From here on a number is shown without decimals."""
_SHOWN = ("mean", "p50", "p90", "p95", "p99", "p999", "max")


def show_run(closed: Closed, console: Console | None = None) -> None:
    """Print a record."""
    out = console or Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=_WIDE)
    run = closed.run
    _head(out, run)
    for load in run.loads:
        _load(out, load, several=len(run.loads) > 1)
    _definitions(out, run)
    for kind, text in closed.messages.items():
        out.print(f"error {kind}: {text}", style="red", markup=False)
    for note in run.notes:
        out.print(f"note: {note}", style="dim", markup=False)
    out.print()
    out.print(f"record  {closed.run_dir}", markup=False)
    out.print(f"report  {closed.run_dir / REPORT_FILE}", markup=False)


def _head(out: Console, run: Run) -> None:
    provenance = run.provenance
    title = Text(f"{run.run_id}  {provenance.model} on {provenance.backend}", style="bold")
    if run.status != "completed":
        title.append(f"  {run.status}", style="yellow")
    if not provenance.attributed:
        title.append("  unattributed", style="yellow")
    out.print(title)
    for name in ("backend_commit", "model_revision"):
        if name in provenance.missing:
            out.print(f"  {name} unknown: {provenance.missing[name]}", style="dim", markup=False)


def _load(out: Console, load: LoadResult, *, several: bool) -> None:
    summary = load.summary
    counts, delivered, client, reads = summary.counts, summary.delivered, summary.client, summary.reads
    out.print()
    if several:
        out.print(Text(f"load {load.index}: {load.arrival}", style="bold underline"))
    trusted = summary.verdict.trust == "trusted"
    out.print(Text(summary.verdict.trust, style="bold green" if trusted else "bold red"), end="")
    out.print(f": {'; '.join(summary.verdict.reasons)}", markup=False)
    rate = (
        "as fast as answers come"
        if delivered.asked_rate is None
        else f"{delivered.asked_rate:.4g} requests/s"
    )
    out.print(
        f"load asked      {delivered.asked} ({rate})\n"
        f"load delivered  {delivered.rate:.4g} requests/s, in flight mean {delivered.in_flight_mean:.4g}, "
        f"max {delivered.in_flight_max}\n"
        f"requests        {counts.sent} sent, {counts.completed} completed, {counts.failed} failed, "
        f"{counts.cancelled} cancelled; trimmed {counts.trimmed_warmup} warm-up, {counts.trimmed_cooldown} cool-down, "
        f"{counts.recompiled} recompiled; {counts.measured} measured\n"
        f"errors          {', '.join(f'{n} × {kind}' for kind, n in counts.errors.items()) or 'none'}\n"
        f"window          {(summary.window.end_ns - summary.window.start_ns) / 1e9:.3f} s"
        f"{'' if summary.window.trimmed else ', untrimmed'}\n"
        f"client          dispatch lag p50 {_ms(client.dispatch_lag_p50_ms)}, p99 {_ms(client.dispatch_lag_p99_ms)}; "
        f"CPU {client.cpu_s:.2f} s in {client.workers} workers, busiest {client.cpu_busy_max:.0%}; "
        f"{client.timestamp_source} timestamps\n"
        f"reads           {reads.reads} for {reads.chunks} chunks; {reads.multi_event_reads} held several chunks; "
        f"{reads.gaps_excluded} of {reads.gaps} gaps excluded",
        markup=False,
    )
    out.print(_table(load))


def _table(load: LoadResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("metric", "unit", "n", *_SHOWN):
        table.add_column(
            "p99.9" if name == "p999" else name, justify="left" if name in {"metric", "unit"} else "right"
        )
    for tag, metric in load.summary.metrics.items():
        if metric.n:
            table.add_row(
                tag, metric.unit, f"{metric.n:,}", *(_number(getattr(metric, name)) for name in _SHOWN)
            )
    return table


def _definitions(out: Console, run: Run) -> None:
    seen: dict[str, MetricSummary] = {}
    for load in run.loads:
        for tag, metric in load.summary.metrics.items():
            seen.setdefault(tag, metric)
    out.print()
    for tag, metric in seen.items():
        absent = "" if metric.n else " (not evaluated)"
        note = f" [{metric.note}]" if metric.note else ""
        out.print(f"{tag}{absent}: {metric.definition}{note}", style="dim", markup=False)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f} ms"


def _number(value: Number) -> str:
    if value is None:
        return "–"
    if value == "inf":
        return "∞"
    return f"{value:,.4g}" if abs(value) < _WHOLE else f"{value:,.0f}"

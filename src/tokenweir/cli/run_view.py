"""One run on the terminal: whom it belongs to, every metric with its n, and what each metric means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from tokenweir.bench.records.model import LoadResult, MetricSummary, Run, Summary
from tokenweir.bench.report import wording
from tokenweir.cli.tables import Column, echo_table, printable

_STATISTICS: Final = ("mean", "p50", "p90", "p95", "p99", "max")
_HASH_SHOWN: Final = 12
_UNKNOWN: Final = "unknown"


def echo_run(run: Run, *, definitions: bool = True) -> None:
    """Write a run to standard output."""
    _echo_facts(_heading(run))
    for load in run.loads:
        echo_load(load)
    if not run.loads:
        click.echo("\nThe run ended before a load point had results.")
    if definitions:
        _echo_definitions(run)


def echo_load(load: LoadResult) -> None:
    """Write one load point: asked and delivered, how it ended, the client's conduct, every metric."""
    click.echo(f"\n{printable(load.arrival)}")
    _echo_facts(_conduct(load.summary))
    click.echo()
    columns = [
        Column("metric", fixed=True),
        Column("unit"),
        Column("n", number=True),
        *(Column(name, number=True) for name in _STATISTICS),
    ]
    found = load.summary.metrics
    echo_table(columns, [_row(tag, found[tag]) for tag in wording.in_order(found)])
    for tag in wording.in_order(found):
        if found[tag].note:
            click.echo(f"{printable(tag)}: {printable(found[tag].note)}")


def _row(tag: str, metric: MetricSummary) -> list[str]:
    statistics = [wording.statistic(getattr(metric, name)) for name in _STATISTICS]
    return [tag, metric.unit, wording.whole(metric.n), *statistics]


def _heading(run: Run) -> list[tuple[str, str]]:
    who = run.provenance
    commit, revision = who.backend_commit or _UNKNOWN, who.model_revision or _UNKNOWN
    facts = [
        ("run", run.run_id),
        ("model", f"{who.model}, revision {revision}"),
        ("backend", f"{who.backend} {who.backend_version or ''}".rstrip() + f", commit {commit}"),
        ("started", wording.instant(run.started_at)),
        ("took", wording.seconds(run.ended_at - run.started_at)),
        ("status", run.status),
        ("verdict", wording.verdict(run)),
        ("config", who.config_hash[:_HASH_SHOWN]),
    ]
    if not who.attributed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in who.missing.items())
        facts.append((wording.UNATTRIBUTED, reasons or "backend commit or model revision is unknown"))
    if run.labels:
        facts.append(("labels", ", ".join(f"{key}={value}" for key, value in run.labels.items())))
    return [*facts, *(("note", note) for note in run.notes)]


def _conduct(summary: Summary) -> list[tuple[str, str]]:
    errors = [f"{kind} {wording.whole(n)}" for kind, n in summary.counts.errors.items()]
    facts = {
        "load": _load(summary),
        "requests": _requests(summary),
        "errors": ", ".join(errors) or "none",
        "window": _window(summary),
        "client": _client(summary),
        "stream": _stream(summary),
        "verdict": "; ".join((summary.verdict.trust, *summary.verdict.reasons)),
    }
    return [(term, text.replace("\N{NO-BREAK SPACE}", " ")) for term, text in facts.items()]


def _load(summary: Summary) -> str:
    load = summary.delivered
    asked = load.asked if load.asked_rate is None else f"{wording.statistic(load.asked_rate)} requests/s"
    return (
        f"asked {asked}, delivered {wording.statistic(load.rate)} requests/s, in flight "
        f"{wording.statistic(load.in_flight_mean)} mean, {wording.whole(load.in_flight_max)} most"
    )


def _requests(summary: Summary) -> str:
    counts = summary.counts
    return (
        f"{wording.whole(counts.sent)} sent, {wording.whole(counts.completed)} completed, "
        f"{wording.whole(counts.failed)} failed, {wording.whole(counts.cancelled)} cancelled, "
        f"{wording.whole(counts.measured)} measured"
    )


def _window(summary: Summary) -> str:
    window, counts = summary.window, summary.counts
    return (
        f"{window.start_ns / 1e9:.2f} s to {window.end_ns / 1e9:.2f} s; trimmed "
        f"{wording.whole(counts.trimmed_warmup)} as warm-up, {wording.whole(counts.trimmed_cooldown)} as "
        f"cool-down, {wording.whole(counts.recompiled)} recompiled"
    )


def _client(summary: Summary) -> str:
    client = summary.client
    return (
        f"dispatch lag p50 {wording.milliseconds(client.dispatch_lag_p50_ms)}, "
        f"p99 {wording.milliseconds(client.dispatch_lag_p99_ms)}; busiest of {client.workers} workers "
        f"{wording.percent(client.cpu_busy_max)} of a core; {client.timestamp_source} timestamps"
    )


def _stream(summary: Summary) -> str:
    reads = summary.reads
    return (
        f"{wording.whole(reads.multi_event_reads)} of {wording.whole(reads.reads)} reads held several "
        f"chunks; {wording.whole(reads.gaps_excluded)} of {wording.whole(reads.gaps)} gaps left out"
    )


def _echo_definitions(run: Run) -> None:
    found: dict[str, MetricSummary] = {}
    for load in run.loads:
        found.update(load.summary.metrics)
    if not found:
        return
    click.echo("\nDefinitions")
    better = {"lower": "lower is better", "higher": "higher is better", "none": "neither is better"}
    tags = wording.in_order(found)
    _echo_facts([(tag, f"{found[tag].definition} ({better[found[tag].direction]})") for tag in tags])


def _echo_facts(facts: Sequence[tuple[str, str]]) -> None:
    width = max(len(term) for term, _ in facts)
    for term, text in facts:
        click.echo(f"{printable(term):{width}}  {printable(text)}")

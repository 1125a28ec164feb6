"""The parts of the page that need no script: heading, tables, definitions, provenance. All text is safe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import msgspec

from tokenweir.bench.records.model import LoadResult, MetricSummary, Run, Summary
from tokenweir.bench.report import wording

Fact = tuple[str, str]

_TILES: Final = (
    ("ttft", "p50", "p99"),
    ("itl", "p50", "p99"),
    ("tpot", "p50", "p99"),
    ("e2el", "p50", "p99"),
    ("output_throughput", "mean", None),
    ("request_throughput", "mean", None),
    ("goodput", "mean", None),
    ("error_rate", "mean", None),
)
_SWEEP: Final = (
    ("ttft", "p50"),
    ("ttft", "p99"),
    ("tpot", "p50"),
    ("tpot", "p99"),
    ("e2el", "p50"),
    ("output_throughput", "mean"),
    ("request_throughput", "mean"),
    ("goodput", "mean"),
)
_HASH_SHOWN: Final = 12


def badges(run: Run) -> str:
    """Return status, verdict and attribution as badges; each says in words what its colour says."""
    trust = wording.verdict(run)
    found = [(run.status, "good" if run.status == "completed" else "warn")]
    if run.loads:
        found.append((trust, "good" if trust == "trusted" else "warn"))
    found.append(("attributed", "good") if run.provenance.attributed else (wording.UNATTRIBUTED, "warn"))
    return "".join(f'<li class="badge {kind}">{escape(text)}</li>' for text, kind in found)


def callouts(run: Run) -> str:
    """Return what a reader must know before the numbers: what speaks against them, and the notes."""
    parts: list[str] = []
    bound = [load for load in run.loads if load.summary.verdict.trust == "client-bound"]
    if bound:
        reasons = [
            f"{load.arrival}: {reason}" if len(run.loads) > 1 else reason
            for load in bound
            for reason in load.summary.verdict.reasons or ("no reason is recorded",)
        ]
        parts.append(_callout("Client-bound: these numbers speak of the client, not of the server.", reasons))
    if not run.provenance.attributed:
        missing = [f"{name}: {reason}" for name, reason in run.provenance.missing.items()]
        parts.append(_callout("Unattributed: backend commit or model revision is unknown.", missing))
    if run.status != "completed":
        what = "Cancelled" if run.status == "cancelled" else "Failed"
        parts.append(_callout(f"{what}: the run ended early. What was measured until then is here.", []))
    if run.notes:
        parts.append(_callout("Notes", run.notes, kind="quiet"))
    return "".join(parts)


def heading_facts(run: Run) -> str:
    """Return whom the numbers belong to, as a list of terms."""
    who, work = run.provenance, wording.part(run, "workload")
    corpus_name = wording.table(work.get("corpus")).get("name")
    backend = f"{who.backend} {who.backend_version or ''}".strip()
    labels = ", ".join(f"{key}={value}" for key, value in run.labels.items())
    return facts(
        [
            ("Backend", backend),
            ("Backend commit", _known(who.backend_commit)[:_HASH_SHOWN]),
            ("Model revision", _known(who.model_revision)),
            ("Endpoint", _text(wording.part(run, "subject").get("url"))),
            ("Workload", _join(work.get("kind"), "streamed" if work.get("stream") else "not streamed")),
            ("Corpus", _join(corpus_name, work.get("scenario"))),
            ("Load", _loads(run)),
            ("Started", wording.instant(run.started_at)),
            ("Took", wording.seconds(run.ended_at - run.started_at)),
            ("Labels", labels or wording.UNKNOWN),
            ("Config hash", who.config_hash[:_HASH_SHOWN]),
            ("Run", run.run_id),
        ]
    )


def provenance(run: Run) -> str:
    """Return the whole provenance, machine, calibration and spec."""
    who, where = run.provenance, run.environment
    rows = [
        ("Config hash", who.config_hash),
        ("Workload hash", who.workload_hash),
        ("Measurement hash", who.measurement_hash),
        ("Corpus hash", who.corpus_hash),
        ("Backend commit", _known(who.backend_commit)),
        ("Model revision", _known(who.model_revision)),
        ("Tokenizer hash", _known(who.tokenizer_hash)),
        ("Tokenweir", _join(who.tokenweir_version, who.tokenweir_commit)),
        ("Client", f"{where.host}, {where.os} {where.kernel}, {where.cpu}, {where.cores} cores"),
        ("Client Python", where.python),
        ("Client memory", wording.size(where.memory_bytes)),
        ("Load average at the start", f"{where.load_1m:.2f}"),
    ]
    spec = msgspec.json.format(msgspec.json.encode(run.spec)).decode()
    return (
        f"<h3>Record</h3>{facts(rows)}<h3>Calibration of this client</h3>{_calibration(run)}"
        f"<details><summary>The experiment as it was run</summary><pre>{escape(spec)}</pre></details>"
    )


def definitions(run: Run) -> str:
    """Return every metric of the run with its definition."""
    found: dict[str, MetricSummary] = {}
    for load in run.loads:
        for tag, metric in load.summary.metrics.items():
            found.setdefault(tag, metric)
    rows = "".join(
        f'<dt id="def-{escape(tag)}">{escape(wording.title(tag))} <code>{escape(tag)}</code></dt>'
        f"<dd>{escape(found[tag].definition)} <span class=unit>({escape(found[tag].unit)}, "
        f"{_better(found[tag])})</span></dd>"
        for tag in wording.in_order(found)
    )
    return f'<dl class="definitions">{rows}</dl>'


def sweep_section(run: Run) -> str:
    """Return all load points side by side: their table and the place of the sweep's charts."""
    shown = [
        (tag, name)
        for tag, name in _SWEEP
        if any(load.summary.metrics[tag].n for load in run.loads if tag in load.summary.metrics)
    ]
    units = {tag: metric.unit for load in run.loads for tag, metric in load.summary.metrics.items()}
    head = "".join(
        f"<th scope=col class=num>{escape(wording.title(tag))}{'' if name == 'mean' else f' {name}'}"
        f" <span class=unit>{escape(units[tag])}</span></th>"
        for tag, name in shown
    )
    rows = "".join(_sweep_row(load, shown) for load in run.loads)
    return (
        '<section id="sweep" aria-labelledby="sweep-title"><h2 id="sweep-title">Sweep</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Load points">'
        '<table class="sortable compact">'
        "<caption>Load points of this run; a name leads to its results.</caption><thead><tr>"
        "<th scope=col>load</th><th scope=col class=num>delivered <span class=unit>requests/s</span></th>"
        "<th scope=col class=num>in flight <span class=unit>mean</span></th>"
        f"{head}<th scope=col class=num>n</th><th scope=col class=num>failed</th><th scope=col>verdict</th>"
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        '<div class="charts" data-charts="sweep"></div></section>'
    )


def _sweep_row(load: LoadResult, shown: Sequence[tuple[str, str]]) -> str:
    summary = load.summary
    cells = [wording.statistic(summary.delivered.rate), wording.statistic(summary.delivered.in_flight_mean)]
    for tag, name in shown:
        metric = summary.metrics.get(tag)
        cells.append(wording.UNKNOWN if metric is None else wording.statistic(getattr(metric, name)))
    cells += [wording.whole(summary.counts.measured), wording.whole(summary.counts.failed)]
    inner = "".join(f"<td class=num>{cell}</td>" for cell in cells)
    return (
        f'<tr><th scope=row><a href="#load-{load.index}">{escape(load.arrival)}</a></th>{inner}'
        f"<td>{escape(summary.verdict.trust)}</td></tr>"
    )


def no_loads() -> str:
    """Return what stands where results would be when the run ended before its first load point."""
    return "<section><h2>Results</h2><p>The run ended before a load point had results.</p></section>"


def load_section(load: LoadResult, *, alone: bool) -> str:
    """Return one load point: key figures, conduct, every metric, and the place of its charts."""
    index = load.index
    name = "Results" if alone else f"Load point {escape(load.arrival)}"
    return (
        f'<section class="load" id="load-{index}" data-load="{index}" aria-labelledby="load-{index}-title">'
        f'<h2 id="load-{index}-title">{name}</h2>'
        f"{tiles(load.summary)}{_verdict(load.summary)}{conduct(load.summary)}{metrics_table(load)}"
        f'<div class="charts" data-charts="{index}"></div></section>'
    )


def tiles(summary: Summary) -> str:
    """Return the key figures, each with its statistic, unit and n."""
    parts: list[str] = []
    for tag, main, second in _TILES:
        metric = summary.metrics.get(tag)
        if metric is None or not metric.n or getattr(metric, main) is None:
            continue
        aside = f"{second} {wording.statistic(getattr(metric, second))} · " if second else ""
        label = f"{wording.title(tag)}{f', {main}' if second else ''}"
        value, unit = wording.statistic(getattr(metric, main)), metric.unit
        if metric.unit == "ratio" and isinstance(metric.mean, float):
            value, _, unit = wording.percent(metric.mean).partition("\N{NO-BREAK SPACE}")
        parts.append(
            f'<div class="tile"><dt title="{escape(metric.definition)}">{escape(label)}</dt>'
            f"<dd><b>{value}</b> <span class=unit>{escape(unit)}</span>"
            f"<small>{aside}n {wording.whole(metric.n)}</small></dd></div>"
        )
    return f'<dl class="tiles">{"".join(parts)}</dl>'


def conduct(summary: Summary) -> str:
    """Return what was asked and delivered, how requests ended, and how the client fared."""
    asked, counts, reads, client = summary.delivered, summary.counts, summary.reads, summary.client
    rate = (
        wording.UNKNOWN if asked.asked_rate is None else f"{wording.statistic(asked.asked_rate)} requests/s"
    )
    load = [
        ("Load asked for", asked.asked),
        ("Rate asked for", rate),
        ("Rate delivered", f"{wording.statistic(asked.rate)} requests/s"),
        ("In flight, mean", wording.statistic(asked.in_flight_mean)),
        ("In flight, most", wording.whole(asked.in_flight_max)),
        ("Window begins", f"{summary.window.start_ns / 1e9:.2f} s"),
        ("Window ends", f"{summary.window.end_ns / 1e9:.2f} s"),
        ("Trimmed", "yes" if summary.window.trimmed else "no"),
    ]
    ended = [
        ("Planned", wording.whole(counts.planned)),
        ("Sent", wording.whole(counts.sent)),
        ("Completed", wording.whole(counts.completed)),
        ("Failed", wording.whole(counts.failed)),
        ("Cancelled", wording.whole(counts.cancelled)),
        ("Measured", wording.whole(counts.measured)),
        ("Trimmed as warm-up", wording.whole(counts.trimmed_warmup)),
        ("Trimmed as cool-down", wording.whole(counts.trimmed_cooldown)),
        ("Left out, recompiled", wording.whole(counts.recompiled)),
    ]
    own = [
        ("Dispatch lag p50", wording.milliseconds(client.dispatch_lag_p50_ms)),
        ("Dispatch lag p99", wording.milliseconds(client.dispatch_lag_p99_ms)),
        ("Dispatch lag, most", wording.milliseconds(client.dispatch_lag_max_ms)),
        ("Timestamps", "kernel" if client.timestamp_source == "kernel" else "user space"),
        ("CPU, all workers", f"{wording.statistic(client.cpu_s)} s"),
        ("CPU, capture alone", f"{wording.statistic(client.capture_cpu_s)} s"),
        ("CPU, awake before due requests", f"{wording.statistic(client.spin_s)} s"),
        ("CPU, busiest of " + wording.whole(client.workers), wording.percent(client.cpu_busy_max)),
        ("Memory", wording.size(client.rss_max_bytes)),
        ("Clock steps", wording.whole(client.clock_steps)),
        ("CPU stolen", wording.percent(client.steal_ratio)),
    ]
    received = [
        ("Chunks", wording.whole(reads.chunks)),
        ("Reads", wording.whole(reads.reads)),
        (
            "Reads of several chunks",
            _part(reads.multi_event_reads, reads.reads),
        ),
        ("Gaps", wording.whole(reads.gaps)),
        (
            "Gaps left out",
            _part(reads.gaps_excluded, reads.gaps),
        ),
    ]
    errors = sorted(counts.errors.items(), key=lambda item: -item[1])
    cards = [
        ("Load", facts(load)),
        ("Requests", facts(ended)),
        ("Client", facts(own)),
        ("Stream", facts(received)),
        ("Errors", facts([(kind, wording.whole(n)) for kind, n in errors]) if errors else "<p>None.</p>"),
    ]
    boxes = [f"<div class=card><h3>{name}</h3>{body}</div>" for name, body in cards]
    return f'<div class="cards">{"".join(boxes[:3])}<div class="stack">{"".join(boxes[3:])}</div></div>'


def metrics_table(load: LoadResult) -> str:
    """Return every metric of a load point with all statistics, unit and n."""
    statistics = wording.STATISTICS
    head = "".join(f"<th scope=col class=num>{name}</th>" for name in statistics)
    rows: list[str] = []
    found = load.summary.metrics
    for tag in wording.in_order(found):
        metric = found[tag]
        cells = "".join(
            f"<td class=num>{wording.statistic(getattr(metric, name))}</td>" for name in statistics
        )
        note = f"<small>{escape(metric.note)}</small>" if metric.note else ""
        title, definition = escape(wording.title(tag)), escape(metric.definition)
        name = f'<a href="#def-{escape(tag)}" title="{definition}">{title}</a>'
        rows.append(
            f"<tr><th scope=row>{name} <code>{escape(tag)}</code>{note}</th><td>{escape(metric.unit)}</td>"
            f"<td class=num>{wording.whole(metric.n)}</td>{cells}</tr>"
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="All metrics, {escape(load.arrival)}">'
        "<table class=sortable><caption>All metrics. A rate over the window stands under mean.</caption>"
        "<thead><tr><th scope=col>metric</th><th scope=col>unit</th><th scope=col class=num>n</th>"
        f"{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def facts(rows: Iterable[Fact]) -> str:
    """Return terms with their values."""
    inner = "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in rows)
    return f'<dl class="facts">{inner}</dl>'


def _verdict(summary: Summary) -> str:
    verdict = summary.verdict
    reasons = "; ".join(verdict.reasons)
    return f'<p class="verdict"><b>{verdict.trust.capitalize()}</b>{": " if reasons else "."}{escape(reasons)}</p>'


def _callout(head: str, lines: Sequence[str], *, kind: str = "warn") -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<aside class="callout {kind}"><p>{escape(head)}</p>{f"<ul>{items}</ul>" if items else ""}</aside>'
    )


def _calibration(run: Run) -> str:
    found = run.calibration
    if found is None:
        return "<p>None: run <code>weir bench calibrate</code> on this machine.</p>"
    return facts(
        [
            ("When", wording.instant(found.at)),
            ("Streams", wording.whole(found.streams)),
            ("Timestamps", found.timestamp_source),
            ("TTFT error, p50", wording.milliseconds(found.ttft_error_p50_ms)),
            ("TTFT error, p99", wording.milliseconds(found.ttft_error_p99_ms)),
            ("ITL error, p99", wording.milliseconds(found.itl_error_p99_ms)),
            ("Dispatch lag, p99", wording.milliseconds(found.dispatch_lag_p99_ms)),
            ("Chunks per CPU second", wording.statistic(found.chunks_per_cpu_s)),
            ("Rows per CPU second", wording.statistic(found.rows_per_cpu_s)),
            ("Requests per CPU second", wording.statistic(found.requests_per_cpu_s)),
        ]
    )


def _loads(run: Run) -> str:
    arrivals = [load.arrival for load in run.loads]
    return arrivals[0] if len(arrivals) == 1 else f"{len(arrivals)} load points"


def _known(value: str | None) -> str:
    return value or "unknown"


def _text(value: object) -> str:
    return wording.UNKNOWN if value is None else str(value)


def _part(count: int, total: int) -> str:
    return f"{wording.whole(count)} ({wording.share(count, total)})"


def _join(*values: object) -> str:
    return ", ".join(str(value) for value in values if value) or wording.UNKNOWN


def _better(metric: MetricSummary) -> str:
    return {"lower": "lower is better", "higher": "higher is better", "none": "neither is better"}[
        metric.direction
    ]

"""``report.html``: one file that needs nothing else, neither a server nor a network.

The page carries what it draws as JSON, down-sampled, however long the run was. Its script and style are
allowed by their hashes alone, so nothing that a run brings along can be run by a browser.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

import msgspec

from tokenweir.bench.records.model import LoadResult, Run
from tokenweir.bench.records.rundir import REPORT_FILE, read_run
from tokenweir.bench.report import markup, wording
from tokenweir.bench.report.latencies import itl_cdf, request_cdfs
from tokenweir.bench.report.overtime import heat_map, span_of, throughput_over_time, ttft_over_time
from tokenweir.bench.report.payload import Load, Payload
from tokenweir.bench.report.sweep import pareto, sweep_charts
from tokenweir.bench.report.tables import Requests, Series, read_requests, read_series
from tokenweir.bench.report.timeline import MAX_ROWS, timeline

_FEW_LOADS: Final = 8
"""Up to so many load points are drawn in full detail."""
_ASSETS: Final = resources.files("tokenweir.bench.report") / "assets"


@dataclass(frozen=True, slots=True)
class _Tables:
    """The tables of one load point."""

    run_dir: Path
    requests: Requests
    series: Series | None


def render(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path; an older report is replaced whole.

    Raises:
        RecordError: the directory holds no run, or one of its tables is missing or damaged.
    """
    run = read_run(run_dir)
    text = page(run, _payload(run, run_dir))
    path = run_dir / REPORT_FILE
    draft = run_dir / f".{REPORT_FILE}.part"
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def page(run: Run, payload: Payload) -> str:
    """Return the whole page."""
    script = "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in ("charts.js", "report.js"))
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    alone = len(run.loads) == 1
    return Template((_ASSETS / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{run.provenance.model}: {wording.instant(run.started_at)}"),
        script_hash=_hash(script),
        style_hash=_hash(style),
        style=style,
        script=script,
        model=escape(run.provenance.model),
        badges=markup.badges(run),
        facts=markup.heading_facts(run),
        callouts=markup.callouts(run),
        sweep="" if alone or not run.loads else markup.sweep_section(run),
        loads="".join(markup.load_section(load, alone=alone) for load in run.loads) or markup.no_loads(),
        definitions=markup.definitions(run),
        provenance=markup.provenance(run),
        version=escape(run.provenance.tokenweir_version),
        data=embedded(msgspec.json.encode(payload).decode()),
    )


def embedded(json: str) -> str:
    """Return JSON that may stand inside a ``script`` element: no character in it can end the element."""
    for character in "<>&\u2028\u2029":
        json = json.replace(character, f"\\u{ord(character):04x}")
    return json


def _payload(run: Run, run_dir: Path) -> Payload:
    requests = read_requests(run_dir)
    series = read_series(run_dir)
    limits = wording.slo_ms(run)
    loads = [
        _load(run, load, _Tables(run_dir, requests[load.index], series.get(load.index)))
        for load in run.loads
        if load.index in requests
    ]
    swept = len(run.loads) > 1
    return Payload(
        run_id=run.run_id,
        loads=loads,
        sweep=sweep_charts(run, limits) if swept else [],
        pareto=pareto(run) if swept else None,
    )


def _stall_ms(load: LoadResult) -> float | None:
    """Return what counts as a stall: a gap longer than 99 % of all gaps."""
    metric = load.summary.metrics.get("itl")
    return float(metric.p99) if metric and isinstance(metric.p99, int | float) else None


def _load(run: Run, load: LoadResult, tables: _Tables) -> Load:
    requests, series = tables.requests, tables.series
    span = span_of(load, requests)
    failures_count = wording.part(run, "measurement").get("failures_as_infinite") is True
    charts = request_cdfs(requests, slo_ms=wording.slo_ms(run), failures_count=failures_count)
    detail = _FEW_LOADS / max(_FEW_LOADS, len(run.loads))
    rows = max(1, int(MAX_ROWS * detail))
    ttft = ttft_over_time(requests, span, detail)
    charts += [ttft] if ttft else []
    heat = None
    if series is not None:
        itl = itl_cdf(series)
        charts += [itl] if itl else []
        charts += throughput_over_time(series, span)
        heat = heat_map(series, span, detail)
    return Load(
        index=load.index,
        arrival=load.arrival,
        charts=charts,
        heat=heat,
        timeline=timeline(tables.run_dir, requests, span, most=rows, stall_ms=_stall_ms(load)),
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"

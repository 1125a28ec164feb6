"""The waterfall: single requests from their scheduled time to their last byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from tokenweir.bench.records.columns import PHASES, STATUSES
from tokenweir.bench.report.latencies import NS_PER_MS, NS_PER_S
from tokenweir.bench.report.overtime import Span
from tokenweir.bench.report.payload import Timeline, instants, rounded
from tokenweir.bench.report.tables import IntArray, Requests, read_chunk_times
from tokenweir.core.metrics.base import FloatArray

MAX_ROWS: Final = 400
_SPREAD: Final = 320
_SLOWEST: Final = 40
_FAILED: Final = 40
_STALLS: Final = 6
# Bars shorter than this share of the time shown are better compared from a common start.
_VISIBLE: Final = 0.08


def sample(requests: Requests, most: int = MAX_ROWS) -> IntArray:
    """Return the places of the requests to draw: all, or evenly spaced, slowest and first failed ones."""
    total = len(requests.number)
    if total <= most:
        return np.arange(total)
    scale = most / MAX_ROWS
    spread = np.linspace(0, total - 1, int(_SPREAD * scale)).astype(np.int64)
    duration = requests.columns["end_ns"] - requests.columns["scheduled_ns"]
    completed = np.where(requests.status == STATUSES.index("completed"), duration, -np.inf)
    place = total - max(1, int(_SLOWEST * scale))
    slowest = np.argpartition(np.nan_to_num(completed, nan=-np.inf), place)[place:].astype(np.int64)
    failed = np.flatnonzero(requests.status == STATUSES.index("failed"))[: int(_FAILED * scale)]
    return np.unique(np.concatenate([spread, slowest, failed]).astype(np.int64))


def timeline(
    run_dir: Path, requests: Requests, span: Span, *, most: int = MAX_ROWS, stall_ms: float | None = None
) -> Timeline | None:
    """Return at most ``most`` requests as bars, in order of their scheduled time.

    Where single chunks were kept, gaps longer than ``stall_ms`` are marked in the bars.
    """
    total = len(requests.number)
    if not total:
        return None
    places = sample(requests, most)
    places = places[np.argsort(requests.columns["scheduled_ns"][places], kind="stable")]
    names = ("scheduled_ns", "sent_ns", "first_token_ns", "end_ns")
    times = [instants(requests.columns[name][places] / NS_PER_S) for name in names]
    rows = [
        [float(requests.number[place]), float(requests.phase[place]), float(requests.status[place]), *moments]
        for place, moments in zip(places.tolist(), zip(*times, strict=True), strict=True)
    ]
    chunks = read_chunk_times(run_dir, requests.number[places]) if stall_ms is not None else None
    marked = stalls(requests.number[places].tolist(), chunks, stall_ms)
    length = (requests.columns["end_ns"][places] - requests.columns["scheduled_ns"][places]) / NS_PER_S
    length = length[np.isfinite(length)]
    aligned = bool(len(length)) and float(np.median(length)) < _VISIBLE * (span.end - span.start)
    return Timeline(
        id="timeline",
        title="Requests, one by one",
        caption=_rule(total, len(places)),
        phases=list(PHASES),
        statuses=list(STATUSES),
        rows=rows,
        stalls=marked,
        stall_ms=rounded(stall_ms) if marked else None,
        aligned=aligned,
        shade=span.window,
    )


def stalls(
    numbers: Sequence[int], chunks: tuple[IntArray, FloatArray] | None, stall_ms: float | None
) -> list[list[float]]:
    """Return begin and end, in seconds, of the longest gaps above ``stall_ms`` of each request, flat."""
    if chunks is None or stall_ms is None:
        return []
    request, received = chunks
    gap = np.diff(received)
    long = np.flatnonzero((gap > stall_ms * NS_PER_MS) & (request[1:] == request[:-1]))
    long = long[np.argsort(-gap[long], kind="stable")]
    found: dict[int, list[float]] = {number: [] for number in numbers}
    for place in long.tolist():
        times = found.get(int(request[place]), [])
        if len(times) < 2 * _STALLS:
            times += [round(float(received[place + part]) / NS_PER_S, 4) for part in (0, 1)]
    return list(found.values())


def _rule(total: int, shown: int) -> str:
    bar = "A bar runs from scheduled to sent to first token to last byte."
    if shown == total:
        return f"{bar} All {total:,} requests."
    return (
        f"{bar} {shown:,} of {total:,} requests: evenly spaced ones, the slowest completed ones "
        "and the first that failed."
    )

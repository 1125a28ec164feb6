"""``weir bench calibrate``: the engine against a server that tells its true send times, on this machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from tokenweir.bench.live import View
from tokenweir.bench.options import BenchOptions
from tokenweir.bench.prepare import spare_descriptors
from tokenweir.bench.records.model import Calibration, MetricSummary, Number, Summary
from tokenweir.bench.service import run_bench
from tokenweir.bench.settings import Settings
from tokenweir.core.errors import NoResultError

STREAMS: Final = 1000
TOKENS: Final = 64
_OPEN_RATE: Final = 2000
_CLOSED: Final = 64


class ServerShape(NamedTuple):
    """What a calibration needs of its server: when the first token comes and the gap between tokens."""

    ttft: str
    itl: str


StartServer = Callable[[ServerShape], AbstractContextManager[str]]
"""Starts a server that tells its true send times (backend ``sim``); entering gives its URL."""


def calibrate(
    start_server: StartServer, settings: Settings, view: View, *, quick: bool = False
) -> Calibration:
    """Measure this client's own error and ceiling.

    Accuracy and ceilings come from paced streams, the ceiling of requests from answers that are not streamed,
    dispatch lag from an open loop. ``quick`` halves the streams and quarters the rest.
    """
    streams = min(STREAMS // (2 if quick else 1), max(16, spare_descriptors() // 2))
    times = 1 if quick else 4
    with tempfile.TemporaryDirectory(prefix="weir-calibrate-") as folder:
        measure = _Measure(Path(folder), settings, view)
        with start_server(ServerShape("uniform:50ms..70ms", "constant:20ms")) as url:
            streamed = measure(
                url,
                arrival=f"concurrency={streams}",
                requests=streams * times,
                max_tokens=TOKENS,
                ignore_eos=True,
            )
        with start_server(ServerShape("constant:0ms", "constant:0ms")) as url:
            whole = measure(
                url, arrival=f"concurrency={_CLOSED}", requests=10_000 * times, max_tokens=4, stream=False
            )
        with start_server(ServerShape("constant:5ms", "constant:5ms")) as url:
            opened = measure(url, arrival=f"constant={_OPEN_RATE}/s", duration=f"{times}s", max_tokens=4)
    reads = streamed.summary
    return Calibration(
        at=time.time_ns(),
        timestamp_source=reads.client.timestamp_source,
        streams=streams,
        ttft_error_p50_ms=_number(reads.metrics["ttft_error"], "p50"),
        ttft_error_p99_ms=_number(reads.metrics["ttft_error"], "p99"),
        itl_error_p99_ms=_number(reads.metrics["itl_error"], "p99"),
        dispatch_lag_p99_ms=opened.summary.client.dispatch_lag_p99_ms or 0.0,
        chunks_per_cpu_s=reads.reads.chunks / reads.client.capture_cpu_s,
        rows_per_cpu_s=reads.reads.chunks / (reads.client.cpu_s + streamed.closing_cpu_s),
        requests_per_cpu_s=whole.summary.counts.completed / whole.summary.client.capture_cpu_s,
    )


class _Measured(NamedTuple):
    summary: Summary
    closing_cpu_s: float


class _Measure:
    """Runs the engine as a user's command would, into a folder that is thrown away."""

    def __init__(self, folder: Path, settings: Settings, view: View) -> None:
        self._folder = folder
        self._settings = settings
        self._view = view

    def __call__(self, url: str, **given: object) -> _Measured:
        run_dir = self._folder / "run"
        options = BenchOptions.load(
            None,
            {"url": url, "backend": "sim", "chunks": "never", "out": str(run_dir), "workers": 1, **given},
        )
        closed = run_bench(options, self._settings, runs_dir=self._folder, view=self._view)
        shutil.rmtree(run_dir)
        summary = closed.run.summary
        if summary is None or not summary.counts.completed:
            raise NoResultError("no request of the calibration completed", mend="run weir doctor")
        return _Measured(summary, closed.cpu_s)


def _number(metric: MetricSummary, name: str) -> float:
    value: Number = getattr(metric, name)
    if not isinstance(value, float):
        raise NoResultError("the calibration gave no value of its error", mend="run weir doctor")
    return value

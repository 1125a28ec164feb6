"""The end of a load point: the workers' spools become rows of the run's tables and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from tokenweir.bench.engine.worker import Conduct as CaptureConduct
from tokenweir.bench.finishing.gaps import Gaps, RequestFacts
from tokenweir.bench.finishing.process import Finished
from tokenweir.bench.finishing.spool import NULL, STATUSES, chunk_type
from tokenweir.bench.finishing.tables import RequestsFile, RowSpools, requests_table
from tokenweir.bench.records.columns import REQUESTS
from tokenweir.bench.records.model import LoadResult, RunStatus
from tokenweir.bench.records.phases import MEASURED, PHASE_COLUMNS, assign_phases
from tokenweir.bench.records.series import Series
from tokenweir.bench.records.summary import Conduct, LoadPoint, summarise
from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.spec import Trim

T = TypeVar("T")


_NO_FINISH: Final = Finished(
    worker=-1, errors=[], reasons=[], messages={}, clock_steps=0, cpu_ns=0, rss_max_bytes=0
)
_NO_CONDUCT: Final = CaptureConduct(
    worker=-1,
    cpu_ns=0,
    spin_ns=0,
    wall_ns=0,
    rss_max_bytes=0,
    kernel_stamps=True,
    unstamped=0,
    retried=0,
    in_flight_max=0,
    sent=0,
)


class Measured(NamedTuple):
    """What a load point left and what is needed to judge it. Times are ns since the run's start."""

    load: int
    folders: tuple[Path, ...]
    arrival: str
    asked_rate: float | None
    open_loop: bool
    planned: int | None
    start_ns: int
    status: RunStatus
    warmup: Trim
    cooldown: Trim
    slo: Mapping[str, int]
    failures_as_infinite: bool
    true_times: bool
    steal_ratio: float | None


class Merged(NamedTuple):
    """A load point's result, its series, and a message for each kind of error."""

    result: LoadResult
    series: Series
    messages: dict[str, str]
    notes: tuple[str, ...]


def merge(measured: Measured, file: RequestsFile) -> Merged:
    """Write the load point's rows to ``file`` and sum it up."""
    finished = [_read(folder / "finish.json", _NO_FINISH) for folder in measured.folders]
    conducts = [_read(folder / "conduct.json", _NO_CONDUCT) for folder in measured.folders]
    spools = RowSpools(measured.folders, [one.errors for one in finished], [one.reasons for one in finished])
    columns: dict[str, FloatArray] = {name: _floats(spools, name) for name in PHASE_COLUMNS}
    phases, window = assign_phases(
        columns, warmup=measured.warmup, cooldown=measured.cooldown, start_ns=measured.start_ns
    )
    completed = spools.column("status") == STATUSES.index("completed")
    output, chunks = spools.column("output_tokens"), spools.column("chunks")
    facts = RequestFacts(
        spools.column("request"),
        (phases == MEASURED) & completed,
        output,
        chunks,
        spools.column("counted_tokens"),
    )
    gaps = Gaps((window.start_ns, window.end_ns), measured.folders[0])
    kind = chunk_type(true_times=measured.true_times)
    for folder in measured.folders:
        gaps.add(folder, kind, facts)
    whole = completed & (chunks == 0)
    gaps.add_whole_answers(spools.column("end_ns")[whole], output[whole])
    gaps.close()
    tables: list[pa.Table] = []
    for where, rows in spools.groups():
        table = requests_table(rows, phases[where], spools.names)
        file.write(table)
        tables.append(table)
    # Dictionaries are the same in every group, so the groups join without a copy of the columns.
    requests = pa.concat_tables(tables) if tables else REQUESTS.empty_table()
    series = gaps.series
    given_up = np.where(completed, np.nan, _floats(spools, "over_ns"))
    series.add_requests(requests, given_up)
    summary = summarise(
        requests,
        {"itl": gaps.itl, "icl": gaps.icl, "itl_error": gaps.itl_error},
        [_conduct(*pair, measured.steal_ratio) for pair in zip(conducts, finished, strict=True)],
        LoadPoint(
            arrival=measured.arrival,
            asked_rate=measured.asked_rate,
            open_loop=measured.open_loop,
            planned=measured.planned,
            window=window,
            output_tokens_in_window=gaps.output_tokens_in_window,
            slo=dict(measured.slo),
            failures_as_infinite=measured.failures_as_infinite,
        ),
        given_up,
    )
    result = LoadResult(
        index=measured.load, arrival=measured.arrival, status=measured.status, summary=summary
    )
    messages = {kind: text for one in finished for kind, text in one.messages.items()}
    return Merged(result, series, messages, tuple(_notes(gaps, conducts)))


def _notes(gaps: Gaps, conducts: Sequence[CaptureConduct]) -> list[str]:
    notes: list[str] = []
    if gaps.unresolved:
        notes.append(
            f"{gaps.unresolved} gaps are in ICL and not in ITL: their chunks hold several tokens, or none can tell"
        )
    died = sum(conduct.worker < 0 for conduct in conducts)
    if died:
        notes.append(f"{died} of {len(conducts)} workers died; what they had not handed over is lost")
    retried = sum(conduct.retried for conduct in conducts)
    if retried:
        notes.append(f"{retried} requests were sent again: the server closed the kept-alive connection first")
    unstamped = sum(conduct.unstamped for conduct in conducts if conduct.kernel_stamps)
    if unstamped:
        notes.append(f"{unstamped} reads came without a kernel stamp and were stamped by the client")
    return notes


def _conduct(capture: CaptureConduct, finished: Finished, steal_ratio: float | None) -> Conduct:
    return Conduct(
        worker=capture.worker,
        cpu_s=capture.cpu_ns / 1e9,
        spin_s=capture.spin_ns / 1e9,
        wall_s=capture.wall_ns / 1e9,
        rss_max_bytes=capture.rss_max_bytes + finished.rss_max_bytes,
        timestamp_source="kernel" if capture.kernel_stamps else "user",
        finishing_cpu_s=finished.cpu_ns / 1e9,
        clock_steps=finished.clock_steps,
        steal_ratio=steal_ratio,
    )


def _floats(spools: RowSpools, name: str) -> FloatArray:
    values = spools.column(name)
    return np.where(values == NULL, np.nan, values.astype(np.float64))


def _read(path: Path, otherwise: T) -> T:
    """Return what a process left in a file, or ``otherwise`` when it died before it could."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(otherwise))
    except (FileNotFoundError, msgspec.DecodeError):
        return otherwise

"""Runs the load generator against servers of the test's own, and reads the record."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow.parquet as pq

from tokenweir.bench.closing import Closed
from tokenweir.bench.options import BenchOptions
from tokenweir.bench.service import failure_of, run_bench
from tokenweir.bench.settings import Settings
from tokenweir.core.errors import WeirError
from tokenweir.sim.process import SimFlags, SimProcess

Row = dict[str, Any]


class Record(NamedTuple):
    """A run directory read back."""

    run_dir: Path
    run: dict[str, Any]
    rows: list[Row]
    chunks: list[Row]
    failure: WeirError | None = None

    def by(self, name: str) -> dict[Any, int]:
        """How many rows have each value of a column."""
        found: dict[Any, int] = {}
        for row in self.rows:
            found[row[name]] = found.get(row[name], 0) + 1
        return found

    @property
    def notes(self) -> str:
        return "\n".join(self.run["notes"])


def read_record(run_dir: Path, failure: WeirError | None = None) -> Record:
    """Read a run directory, and check what every record must keep to."""
    run = json.loads((run_dir / "run.json").read_bytes())
    rows = pq.read_table(run_dir / "requests.parquet").to_pylist()
    path = run_dir / "chunks.parquet"
    chunks = pq.read_table(path).to_pylist() if path.exists() else []
    assert not (run_dir / "work").exists()
    assert {path.name for path in run_dir.iterdir()} <= {
        "run.json",
        "requests.parquet",
        "chunks.parquet",
        "series.parquet",
        "report.html",
        "run.log",
    }
    for row in rows:
        check_row(row)
    keys = [(row["load"], row["request"]) for row in rows]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    return Record(run_dir, run, rows, chunks, failure)


def check_row(row: Row) -> None:
    """Check the order of a row's times, and that its status and its error agree."""
    names = ("sent_ns", "first_byte_ns", "first_token_ns", "last_token_ns", "end_ns")
    times = [row[name] for name in names if row[name] is not None]
    # Kernel stamps and the send time come from two clocks, joined to a microsecond or so.
    assert all(later >= earlier - 50_000 for earlier, later in pairwise(times)), row
    if row["sent_ns"] is not None:
        assert row["sent_ns"] >= row["scheduled_ns"], row
    assert (row["status"] == "completed") == (row["error"] is None), row
    if row["status"] == "completed":
        assert row["end_ns"] is not None
        assert row["http_status"] == 200


def measured(url: str, out: Path, *, portable: bool = False, **options: object) -> Record:
    """Run the load generator in this process and read its record."""
    given: dict[str, object] = {
        "url": url,
        "backend": "sim",
        "out": str(out),
        "max_tokens": 5,
        "chunks": "always",
        "workers": 1,
        **options,
    }
    closed: Closed = run_bench(
        BenchOptions.load(None, given), Settings(), runs_dir=out.parent, portable=portable
    )
    return read_record(closed.run_dir, closed.failure or failure_of(closed))


@contextmanager
def simulator(**flags: Any) -> Generator[SimProcess]:  # noqa: ANN401 - SimFlags; a TypedDict cannot be merged with defaults
    """Start a quick simulator, changed by ``flags``."""
    quick: SimFlags = {"ttft": "constant:2ms", "itl": "constant:1ms"}
    with SimProcess(**cast("SimFlags", {**quick, **flags})) as sim:
        yield sim

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow.parquet as pq
from tests.factories.runs import RunShape, make_run

from tokenweir.bench.records.columns import CHUNKS, REQUESTS, SERIES
from tokenweir.bench.records.model import Run


def test_a_made_run_reads_back(tmp_path: Path) -> None:
    made = make_run(
        tmp_path, n=100, shape=RunShape(loads=("concurrency=4", "poisson=20/s"), chunks=True, failures=0.1)
    )
    read = msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Run)
    assert read == made
    for name, schema in (("requests", REQUESTS), ("chunks", CHUNKS), ("series", SERIES)):
        assert pq.read_schema(tmp_path / f"{name}.parquet").remove_metadata() == schema


def test_a_made_run_depends_on_its_seed_alone(tmp_path: Path) -> None:
    assert make_run(tmp_path / "a", seed=3, n=50) == make_run(tmp_path / "b", seed=3, n=50)
    assert make_run(tmp_path / "c", seed=4, n=50).loads != make_run(tmp_path / "d", seed=3, n=50).loads

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
from tests.factories.runs import make_run

from tokenweir.bench.records.model import Run

SCHEMA = Path(__file__).parents[2] / "docs" / "run.schema.json"


def test_published_schema_is_that_of_the_types() -> None:
    # To mend: make docs.
    assert msgspec.json.decode(SCHEMA.read_bytes()) == msgspec.json.decode(
        msgspec.json.encode(msgspec.json.schema(Run))
    )


def test_a_run_satisfies_the_published_schema(tmp_path: Path) -> None:
    make_run(tmp_path, n=20)
    jsonschema.validate(
        msgspec.json.decode((tmp_path / "run.json").read_bytes()), msgspec.json.decode(SCHEMA.read_bytes())
    )

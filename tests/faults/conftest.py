"""``pytest tests/faults`` tries each fault once, ``--rounds 100`` a hundred times; it prints figures at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.deployment import Deployment, deployment
from tests.services.own import OwnServices

_PROPERTY = "faults"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=1, help="How often each fault is tried.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_number" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("rounds", 1)
        metafunc.parametrize("round_number", range(1, int(rounds or 1) + 1))


@pytest.fixture(scope="module")
def deployed(own_services: OwnServices, tmp_path_factory: pytest.TempPathFactory) -> Generator[Deployment]:
    """A gateway twice, and the services under it, to be broken."""
    home: Path = tmp_path_factory.mktemp("faults")
    with deployment(home, own_services) as made:
        yield made


@pytest.fixture
def figures(record_property: Any) -> Generator[Counter[str]]:  # noqa: ANN401 - pytest's own type is a callable
    """Figures of a test, for the table."""
    counted: Counter[str] = Counter()
    yield counted
    record_property(_PROPERTY, json.dumps(counted))


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401 - pytest does not tell its type
    rows: dict[str, Counter[str]] = {}
    runs: Counter[str] = Counter()
    passed = {report.nodeid for report in terminalreporter.getreports("passed")}
    # Figures are told when a test is torn down, which counts for nothing in the terminal's own statistics.
    for report in terminalreporter.getreports(""):
        for name, value in report.user_properties:
            if name == _PROPERTY and report.when == "teardown" and report.nodeid in passed:
                fault = report.nodeid.partition("::test_")[2].partition("[")[0].replace("_", " ")
                rows.setdefault(fault, Counter()).update(json.loads(value))
                runs[fault] += 1
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(len(fault) for fault in rows)
    terminalreporter.section("faults")
    terminalreporter.write_line("  ".join([" " * width, "rounds", *columns]))
    for fault, row in rows.items():
        cells = [f"{runs[fault]:>6}", *(f"{row[column]:>{len(column)}}" for column in columns)]
        terminalreporter.write_line("  ".join([fault.ljust(width), *cells]))

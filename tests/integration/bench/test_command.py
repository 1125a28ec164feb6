"""``weir bench`` as a command: its options, its exit codes, what it prints and logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.bench.bench import read_record, simulator
from tests.integration.bench.processes import weir

from tokenweir.bench.options import BenchOptions
from tokenweir.sim.process import SimProcess


@pytest.fixture(scope="module")
def sim() -> Iterator[SimProcess]:
    with simulator() as one:
        yield one


def test_help_lists_every_key() -> None:
    ended = weir("bench", "run", "--help")
    assert ended.returncode == 0
    for name in BenchOptions.model_fields:
        assert name == "url" or f"--{name.replace('_', '-')}" in ended.stdout, name


@pytest.mark.parametrize("arguments", [("bench", "--help"), ("bench", "-h")])
def test_the_groups_help_names_both_commands(arguments: tuple[str, ...]) -> None:
    ended = weir(*arguments)
    assert ended.returncode == 0
    assert "calibrate" in ended.stdout
    assert "run" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--concurency", "4"), "--concurency"),
        (("--duration", "5"), "unit"),
        (("--requests", "many"), "requests"),
        (("--requests", "0"), "requests"),
        (("--arrival", "poison=3/s"), "poisson"),
        (("--backend", "vllm"), "backend"),
        (("--slo", "tftt=3ms"), "ttft"),
        (("--warmup", "200"), "warm-up"),
        (("--key", "env:NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE"),
        (("--corpus", "/no/such/file.txt"), "/no/such/file.txt"),
        (("--header", "Accept-Encoding=gzip"), "Accept-Encoding"),
        (("--header", "a b=c"), "no header's name"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    tmp_path: Path, sim: SimProcess, arguments: tuple[str, ...], said: str
) -> None:
    ended = weir("bench", sim.url, "--out", str(tmp_path / "run"), *arguments)
    assert ended.returncode == 2, ended.stderr
    (line,) = [one for one in ended.stderr.splitlines() if one.startswith("weir: ")]
    assert said in line
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use_is_left_alone(tmp_path: Path, sim: SimProcess) -> None:
    (tmp_path / "mine.txt").write_text("x")
    ended = weir("bench", sim.url, "--backend", "sim", "--out", str(tmp_path), "--requests", "2")
    assert ended.returncode == 2
    assert "mine.txt" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_prints_its_verdict_and_where_it_is_and_logs_json_lines(
    tmp_path: Path, sim: SimProcess
) -> None:
    ended = weir(
        "bench", sim.url, "--backend", "sim", "--out", str(tmp_path / "run"), "--requests", "8",
        "--max-tokens", "3", "--arrival", "concurrency=2", "--label", "a=b", "--slo", "ttft=1s",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "8 sent, 8 completed" in ended.stdout
    assert str(tmp_path / "run") in ended.stdout
    record = read_record(tmp_path / "run")
    assert record.run["run_id"] in ended.stdout
    assert record.run["summary"]["metrics"]["goodput"]["n"] == 8
    events = [json.loads(line) for line in (tmp_path / "run/run.log").read_text().splitlines()]
    assert {"run started", "run ended"} <= {event["event"] for event in events}
    assert all(event["run_id"] == record.run["run_id"] for event in events if "run_id" in event)


def test_a_spec_file_says_the_same_as_flags(tmp_path: Path, sim: SimProcess) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(
        f'url = "{sim.url}"\nbackend = "sim"\nrequests = 5\nmax_tokens = 3\narrival = "concurrency=2"\n'
    )
    by_file = weir("bench", "--spec", str(spec), "--out", str(tmp_path / "one"))
    by_flag = weir(
        "bench", sim.url, "--backend", "sim", "--requests", "5", "--max-tokens", "3",
        "--arrival", "concurrency=2", "--out", str(tmp_path / "two"),
    )  # fmt: skip
    assert (by_file.returncode, by_flag.returncode) == (0, 0), by_file.stderr + by_flag.stderr
    one, two = (read_record(tmp_path / name) for name in ("one", "two"))
    assert one.run["spec"] == two.run["spec"]
    assert one.run["provenance"]["config_hash"] == two.run["provenance"]["config_hash"]
    assert [row["sample"] for row in one.rows] == [row["sample"] for row in two.rows]


def test_a_run_in_which_nothing_completed_exits_with_its_kind(tmp_path: Path) -> None:
    with simulator(faults=("429",)) as busy:
        ended = weir("bench", busy.url, "--backend", "sim", "--out", str(tmp_path / "run"), "--requests", "3")
    assert ended.returncode == 4
    assert "overloaded" in ended.stderr
    assert read_record(tmp_path / "run").by("error") == {"overloaded": 3}

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from tests.factories.runs import RunShape, make_run

from tokenweir.bench.records.columns import REQUESTS
from tokenweir.cli.main import run as weir
from tokenweir.cli.runs import parse_since
from tokenweir.cli.tables import Column, aligned
from tokenweir.core.errors import InputError

FIRST, SECOND = "run_01K9AAAAAAAAAAAAAAAAAAAAAA", "run_01K9BBBBBBBBBBBBBBBBBBBBBB"
DAY_NS = 86_400 * 10**9


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIR_STORES__RECORDS", f"sqlite:///{tmp_path}/studio.db")
    monkeypatch.setenv("WEIR_STORES__RUNS", str(tmp_path / "runs"))
    shape = RunShape(run_id=FIRST, labels={"gpu": "L40S"}, attributed=False)
    make_run(tmp_path / "runs" / "first", n=30, shape=shape)
    sweep = RunShape(run_id=SECOND, loads=("concurrency=1", "concurrency=4"), started_at=2 * 10**18)
    make_run(tmp_path / "runs" / "second", n=30, shape=sweep)
    return tmp_path / "runs"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert weir(["runs", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert weir(["runs", *arguments]) == code
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


def test_lists_runs_as_aligned_text(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heading, newest, oldest = said(capsys, "list").splitlines()
    assert heading.split()[0] == "run"
    assert newest.startswith(SECOND)
    assert oldest.startswith(FIRST)
    assert "trusted, unattributed" in oldest
    assert "unattributed" not in newest
    assert oldest.index("gpu=L40S") == heading.index("labels")


def test_lists_runs_as_json_by_what_is_asked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = json.loads(said(capsys, "list", "--label", "gpu=L40S", "--json"))
    assert entry["run_id"] == FIRST
    assert entry["present"] is True
    assert entry["path"] == str(runs / "first")
    assert json.loads(said(capsys, "list", "--since", "2040-01-01", "--json")) == []
    assert "neither an age nor a date" in refused(capsys, "list", "--since", "soon")
    assert "KEY=VALUE" in refused(capsys, "list", "--label", "gpu")


def test_shows_definitions_and_n(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", FIRST.lower())
    assert "unattributed  backend_commit: the server does not say" in text
    assert "Definitions" in text
    for metric in ("ttft", "goodput"):
        assert sum(line.startswith(metric) for line in text.splitlines()) >= 2
    heading = next(line for line in text.splitlines() if line.startswith("metric"))
    assert heading.split() == ["metric", "unit", "n", "mean", "p50", "p90", "p95", "p99", "max"]
    assert "concurrency=4" in said(capsys, "show", str(runs / "second"))
    assert json.loads(said(capsys, "show", str(runs / "second" / "run.json"), "--json"))["run_id"] == SECOND


def test_text_of_a_record_cannot_steer_the_terminal(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs / "odd", n=10, shape=RunShape(labels={"x": "\x1b[31m[red]"}))
    assert "\x1b" not in said(capsys, "list")
    assert "[red]" in said(capsys, "show", str(runs / "odd"))


@pytest.mark.parametrize("form", ["json", "csv"])
def test_exports_a_row_per_metric_and_load_point(
    runs: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    text = said(capsys, "export", FIRST, SECOND, "--format", form)
    rows = json.loads(text) if form == "json" else list(csv.DictReader(io.StringIO(text)))
    assert {(row["run_id"], row["arrival"]) for row in rows} == {
        (FIRST, "concurrency=8"),
        (SECOND, "concurrency=1"),
        (SECOND, "concurrency=4"),
    }
    first = rows[0]
    assert first["metric"] == "ttft"
    assert first["unit"] == "ms"
    assert first["definition"]
    assert str(first["attributed"]).lower() == "false"
    assert float(first["p50"]) > 0


@pytest.mark.parametrize("form", ["json", "csv"])
def test_exports_a_row_per_request(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    out = tmp_path / f"rows.{form}"
    assert said(capsys, "export", SECOND, "--requests", "--format", form, "--out", str(out)) == ""
    text = out.read_text(encoding="utf-8")
    rows = (
        [json.loads(line) for line in text.splitlines()]
        if form == "json"
        else list(csv.DictReader(text.splitlines()))
    )
    assert list(rows[0]) == ["run_id", "attributed", *REQUESTS.names]
    assert [int(row["request"]) for row in rows] == list(range(60))
    assert rows[0]["status"] == "completed"
    assert not list(tmp_path.glob(".*.part"))


def test_an_export_that_fails_leaves_no_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "first" / "requests.parquet").write_bytes(b"PAR1")
    out = tmp_path / "rows.csv"
    assert "damaged" in refused(capsys, "export", FIRST, "--requests", "--out", str(out))
    assert not out.exists()
    assert not list(tmp_path.glob(".*.part"))


def test_an_unknown_run_names_near_ones(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FIRST in refused(capsys, "show", FIRST[:-1] + "B")
    assert "2 runs begin with 'run_01K9'" in refused(capsys, "show", "run_01K9")


def test_what_is_no_run_is_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no finished run" in refused(capsys, "show", str(tmp_path))
    (tmp_path / "run.json").write_text("[]")
    assert "damaged" in refused(capsys, "show", str(tmp_path))
    said(capsys, "list")
    shutil.rmtree(runs / "first")
    assert "is gone" in refused(capsys, "show", FIRST)
    assert "gone" in said(capsys, "list")


def test_the_index_is_made_anew(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "index") == "2 runs indexed, 0 forgotten.\n"
    shutil.rmtree(runs / "first")
    assert json.loads(said(capsys, "index", str(runs), "--json")) == {
        "indexed": [SECOND],
        "forgotten": [FIRST],
        "refused": [],
    }
    (runs / "second" / "run.json").write_text("{}")
    assert "damaged" in refused(capsys, "index")
    assert "no directory" in refused(capsys, "index", str(runs / "nowhere"))


def test_reports_are_written_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "report", FIRST, str(runs / "second")).splitlines() == [
        str(runs / "first" / "report.html"),
        str(runs / "second" / "report.html"),
    ]
    assert (runs / "first" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("30m", 10 * DAY_NS - DAY_NS // 48),
        ("12h", 10 * DAY_NS - DAY_NS // 2),
        ("7d", 3 * DAY_NS),
        ("1w", 3 * DAY_NS),
        ("1970-01-02", DAY_NS),
        ("1970-01-02T12:00:00", DAY_NS + DAY_NS // 2),
        ("1970-01-02T12:00:00+12:00", DAY_NS),
    ],
)
def test_since_is_an_age_or_a_date(text: str, instant: int) -> None:
    assert parse_since(text, now=10 * DAY_NS) == instant


@pytest.mark.parametrize("text", ["", "5", "d", "-3d", "yesterday"])
def test_since_refuses_the_rest(text: str) -> None:
    with pytest.raises(InputError):
        parse_since(text, now=0)


def test_columns_are_aligned() -> None:
    lines = aligned([Column("name"), Column("n", number=True)], [["a", "1"], ["long", "1,000"]])
    assert lines == ["name      n", "a         1", "long  1,000"]

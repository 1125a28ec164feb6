from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.factories.runs import RunShape, make_run

from tokenweir.cli.compare import render
from tokenweir.cli.main import run
from tokenweir.studio.comparison import Options, compare
from tokenweir.studio.findings import Comparison


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("WEIR_STORES__RECORDS", f"sqlite:///{tmp_path}/studio.db")
    monkeypatch.setenv("WEIR_STORES__RUNS", str(tmp_path))
    make_run(tmp_path / "a", seed=1)
    make_run(tmp_path / "b", seed=2, shape=RunShape(slow=0.88, attributed=False))
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_plain_output_ends_with_the_verdict(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Verdict: B is faster: TPOT −")
    assert any(line.startswith("TPOT (ms)") and line.endswith("better") for line in lines)
    assert "Warning: B is unattributed: its backend commit or model revision is unknown" in lines
    assert not any("\x1b" in line for line in lines)
    assert any(line.startswith("   engine_flags.") for line in lines)


def test_json_output_is_the_comparison(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *runs, "--json", "--metric", "tpot", "--seed", "7", "--confidence", "0.9"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Comparison)
    assert found.confidence == 0.9
    assert [contrast.metric for contrast in found.comparisons[0].loads[0].contrasts] == ["tpot"]


def test_all_metrics(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *runs, "--metric", "all"]) == 0
    assert "Interactivity (tokens/s)" in capsys.readouterr().out


@pytest.mark.usefixtures("runs")
def test_runs_are_named_by_directory_id_and_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("first", "second")):
        make_run(tmp_path / name, n=40, seed=number, shape=RunShape(run_id=f"run_0ABC{number}"))
    found: list[Comparison] = []
    for names in (
        (f"{tmp_path}/first", f"{tmp_path}/second/run.json"),
        ("first", "second"),
        ("run_0ABC0", "run_0ABC1"),
        ("0abc0", "second"),
    ):
        assert run(["compare", *names, "--json", "--metric", "tpot"]) == 0
        found.append(msgspec.json.decode(capsys.readouterr().out, type=Comparison))
    assert all(one == found[0] for one in found)
    assert run(["compare", "first", "0abc"]) == 2
    assert "2 runs begin with '0abc'" in capsys.readouterr().err


def test_unlike_runs_end_with_their_own_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", n=20)
    make_run(tmp_path / "b", n=20, shape=RunShape(tokens=8))
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 3
    said = capsys.readouterr().err
    assert 'workload.scenario: "D(100,32)" against "D(100,8)"' in said
    assert said.count("\n") == 1


def test_one_run_or_an_unknown_one_is_refused(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", runs[0]]) == 2
    assert "name a second run" in capsys.readouterr().err
    assert run(["compare", runs[0], "run_nowhere"]) == 2
    said = capsys.readouterr().err
    assert (
        f"no directory 'run_nowhere', here or in {str(tmp_path)!r}, and no run 'run_nowhere' is indexed"
        in said
    )
    assert said.count("\n") == 1
    assert run(["compare", *runs, "--metric", "speed"]) == 2
    assert "the metrics are" in capsys.readouterr().err


def test_a_terminal_gets_colour(runs: tuple[str, str]) -> None:
    found = compare([Path(path) for path in runs], Options())
    assert "\x1b[" in render(found, colour=True)


def test_a_missing_load_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = RunShape(loads=("concurrency=4", "concurrency=8"), client_bound=True)
    make_run(tmp_path / "a", n=40, shape=shape)
    made = make_run(tmp_path / "b", n=40, shape=shape)
    cut = msgspec.structs.replace(made, loads=made.loads[:1])
    (tmp_path / "b" / "run.json").write_bytes(msgspec.json.encode(cut))
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "not evaluated: B has no requests at concurrency=8" in said
    assert "A is client-bound: the busiest worker" in said

"""The demo shows all it promises, and leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path

import pytest
from tests.e2e.running import started, weir

DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]


def processes_that_mention(text: str) -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace").replace("\0", " "))
    return [line for line in found if text in line]


@pytest.mark.timeout(180)
def test_it_measures_compares_refuses_and_says_where_the_reports_are(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    # What the user's own model server is to be like is not for the demo's.
    settings = (
        '[runtime]\nhost = "0.0.0.0"\napi_key = "file:absent"\n[runtime.tls]\ncertificate = "a"\nkey = "b"\n'
    )
    (tmp_path / "weir.toml").write_text(settings, encoding="utf-8")
    ended = weir("demo", "--quick", "--out", str(out), cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "no real model server" not in ended.out
    records = {path.parent.name: json.loads(path.read_text()) for path in out.rglob("run.json")}
    assert set(records) == {"sweep", "real", "before", "after"}
    assert [load["arrival"] for load in records["sweep"]["loads"]] == ["concurrency=1", "concurrency=4"]
    assert all(load["summary"]["counts"]["failed"] == 0 for run in records.values() for load in run["loads"])
    flags = [records[name]["spec"]["subject"]["engine_flags"]["slowdown"] for name in ("before", "after")]
    assert flags == [0.04, 0.02]
    assert records["before"]["provenance"]["workload_hash"] == records["after"]["provenance"]["workload_hash"]
    assert "may not be compared" in ended.out
    assert "Verdict:" in ended.out
    for name in records:
        (report,) = out.rglob(f"{name}/report.html")
        assert str(report) in ended.out
    page = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    assert [path.name for path in out.iterdir() if path.is_file() and f"`{path.name}`" not in page] == []
    assert (out / "studio.db").is_file()
    assert processes_that_mention(str(out)) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_and_all_it_started(tmp_path: Path, number: signal.Signals) -> None:
    out, log = tmp_path / "demo", tmp_path / "log"
    with started("demo", "--quick", "--out", str(out), log=log) as process:
        deadline = time.monotonic() + DEADLINE_S
        while "measuring" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(number)
        code = process.wait(DEADLINE_S)
    assert code == 130, log.read_text()
    assert processes_that_mention(str(out)) == []

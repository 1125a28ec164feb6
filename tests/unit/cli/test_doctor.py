from __future__ import annotations

import json
import os
import resource
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tokenweir.app import Settings
from tokenweir.bench.calibration import save_calibration
from tokenweir.bench.records.model import Calibration
from tokenweir.cli import doctor, main
from tokenweir.cli.doctor import Finding
from tokenweir.config import EndpointSettings, StoreSettings
from tokenweir.runtime.memory import total_bytes
from tokenweir.runtime.settings import bytes_of
from tokenweir.telemetry import machine


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def settings_for(place: Path, *, runs: Path | None = None, port: int | None = None) -> Settings:
    endpoints = (
        () if port is None else (EndpointSettings(name="e", kind="sim", url=f"http://127.0.0.1:{port}"),)
    )
    stores = StoreSettings(records=f"sqlite:///{place}/studio.db", runs=runs or place / "runs")
    return Settings(stores=stores, endpoints=endpoints)


def found(settings: Settings, name: str, *, streams: int = 10) -> Finding:
    return next(one for one in doctor.examine(settings, streams=streams).findings if one.name == name)


def test_json_and_text_tell_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", f"stores.runs={tmp_path}"]
    assert main.run([*flags, "doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    assert main.run([*flags, "doctor"]) == 0
    text = capsys.readouterr().out
    for finding in report["findings"]:
        assert finding["state"] in {"fine", "note", "missing"}
        assert finding["name"] in text
        assert finding["detail"] or finding["mend"]


def test_every_finding_that_is_not_fine_says_how_to_mend_it(tmp_path: Path) -> None:
    for finding in doctor.examine(settings_for(tmp_path), streams=10_000_000).findings:
        assert (finding.state == "fine") == (not finding.mend), finding


def test_descriptors_are_those_of_the_kernel(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = found(settings_for(tmp_path), "descriptors")
    assert enough.state == "fine"
    assert f"hard {hard}" in enough.detail
    lacking = found(settings_for(tmp_path), "descriptors", streams=hard)
    assert lacking.state == "missing"
    assert f"ulimit -Hn {hard + 64}" in lacking.mend


def test_too_few_descriptors_end_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--streams", "2000000000"]) == 1
    assert "missing descriptors" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps TCP reads")
def test_the_kernel_stamps_reads_on_linux() -> None:
    stamp = machine.kernel_stamp()
    assert stamp is not None
    assert 0 <= stamp.delay_ns < 1_000_000_000
    assert machine.timerfd()


def test_cores_are_those_of_the_scheduler() -> None:
    cores = machine.cores()
    assert cores.machine == os.cpu_count()
    assert 1 <= cores.usable <= cores.machine


def test_a_look_at_the_clock_costs_something() -> None:
    assert 0 < machine.clock().read_ns < 1_000_000


def test_numpy_names_its_blas() -> None:
    assert machine.blas().numpy not in {"", "unknown"}


def test_a_service_that_listens_is_fine_and_one_that_does_not_is_missing(tmp_path: Path, port: int) -> None:
    assert found(settings_for(tmp_path, port=port), "endpoint e").state == "fine"
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        silent = found(settings_for(tmp_path, port=unheard.getsockname()[1]), "endpoint e")
    assert (silent.state, silent.needed) == ("missing", True)
    assert "does not answer" in silent.detail


def test_a_store_on_a_server_is_asked_for(tmp_path: Path) -> None:
    settings = Settings(stores=StoreSettings(records="postgresql+psycopg://127.0.0.1:1/weir", runs=tmp_path))
    assert found(settings, "store records").state == "missing"


def test_the_last_calibration_is_shown(tmp_path: Path) -> None:
    assert found(settings_for(tmp_path), "calibration").mend == "weir bench calibrate"
    save_calibration(
        Calibration(
            at=1_700_000_000_000_000_000,
            timestamp_source="kernel",
            streams=1000,
            ttft_error_p50_ms=0.004,
            ttft_error_p99_ms=0.014,
            itl_error_p99_ms=0.02,
            dispatch_lag_p99_ms=0.07,
            chunks_per_cpu_s=150_000,
            rows_per_cpu_s=80_000,
            requests_per_cpu_s=100_000,
        )
    )
    said = found(settings_for(tmp_path), "calibration")
    assert (said.state, said.detail) == (
        "fine",
        "2023-11-14: TTFT off by 0.014 ms (p99) at 1000 streams, kernel timestamps",
    )


def test_runs_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert found(settings_for(tmp_path, runs=file / "runs"), "disk").state == "missing"
    assert found(settings_for(tmp_path), "disk").state in {"fine", "note"}


def test_memory_for_models_is_that_of_the_settings(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    whole = total_bytes()
    assert f"{whole / 2**30:.1f} GiB; " in found(settings, "memory").detail
    for limit, state in (("0.5", "fine"), (f"{2 * whole}", "note")):
        runtime = settings.runtime.model_copy(update={"memory_limit": limit})
        told = found(settings.model_copy(update={"runtime": runtime}), "memory")
        assert f"{bytes_of(limit, whole) / 2**30:.1f} GiB of it" in told.detail
        assert told.state == state


def test_mlx_is_named_with_its_versions_or_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = found(settings_for(tmp_path), "mlx")
    if here.state == "fine":
        assert f"mlx-lm {version('mlx-lm')}" in here.detail
    monkeypatch.setitem(sys.modules, "mlx", None)
    without = found(settings_for(tmp_path), "mlx")
    assert (without.state, without.needed) == ("note", False)
    assert "tokenweir[runtime]" in without.mend

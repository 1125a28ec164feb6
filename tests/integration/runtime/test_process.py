from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.factories.engines import model

from tokenweir.cli.options import Options
from tokenweir.runtime.process import RuntimeProcess, can_serve

pytestmark = pytest.mark.skipif(not can_serve(), reason="needs the extra 'runtime'")

STARTER = """
import sys
from pathlib import Path
from tokenweir.runtime.process import RuntimeProcess
with RuntimeProcess(Path(sys.argv[1]), Path(sys.argv[2]), "--engine", "sim") as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
DEADLINE_S = 20


def test_it_serves_within_the_block_and_is_gone_after_it(tmp_path: Path) -> None:
    log = tmp_path / "made" / "log"
    with RuntimeProcess(model(tmp_path), log, "--engine", "sim") as server:
        pid = server.pid
        door = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        with contextlib.closing(door):
            door.request("GET", "/ready")
            assert door.getresponse().status == 200
    assert not Path(f"/proc/{pid}").exists()
    assert log.exists()


def test_it_has_the_settings_of_its_starter(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret", encoding="utf-8")
    flags = Options(overrides={"runtime.api_key": f"file:{key}"}).flags()
    with RuntimeProcess(model(tmp_path), tmp_path / "log", "--engine", "sim", flags=flags) as server:
        door = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        with contextlib.closing(door):
            door.request("GET", "/v1/models")
            assert door.getresponse().status == 401


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is not a child")
def test_it_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(model(tmp_path)), str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        watched = os.pidfd_open(int(starter.stdout.readline()))
        try:
            starter.send_signal(signal.SIGKILL)
            ended, _, _ = select.select([watched], [], [], DEADLINE_S)
        finally:
            os.close(watched)
    assert ended

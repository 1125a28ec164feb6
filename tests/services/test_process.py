"""A supervised process is told apart from others, and ends with all that it started."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy.services.ports import LOOPBACK, free_ports, is_free
from deploy.services.process import Command, Process

_PATIENCE_S = 20.0


def _shell(script: str) -> Command:
    return Command(["/bin/sh", "-c", script], {"PATH": os.pathsep.join(os.get_exec_path())})


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def _started(script: str, log: Path) -> Process:
    """Run ``script``, which says ``ready`` when it is."""
    process = Process.spawn(_shell(script), log)
    _until(lambda: "ready" in log.read_text())
    return process


def _pids(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split() if word.isdigit()]


def test_output_of_every_run_is_kept_and_the_environment_is_what_was_given(tmp_path: Path) -> None:
    log = tmp_path / "new" / "log.txt"
    for word in ("first", "second"):
        process = Process.spawn(Command(["/usr/bin/env"], {"WORD": word}), log)
        _until(lambda process=process: not process.alive)
    assert log.read_text() == "WORD=first\nWORD=second\n"


def test_another_process_with_the_same_pid_is_not_it(tmp_path: Path) -> None:
    process = _started("echo ready; exec sleep 60", tmp_path / "log")
    assert process.alive
    namesake = Process(process.pid, f"{process.started}0")
    assert not namesake.alive
    namesake.kill()
    assert process.alive
    process.kill()
    assert not process.alive
    assert not Process.of(process.pid).alive


def test_stop_ends_what_it_started_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _started("sleep 60 & echo $!; echo ready; wait", log)
    child = Process.of(_pids(log)[0])
    assert child.alive
    assert process.stop(signal.SIGTERM, _PATIENCE_S)
    assert not process.alive
    assert not child.alive


def test_one_that_does_not_obey_is_killed(tmp_path: Path) -> None:
    process = _started("trap '' TERM; echo ready; while :; do sleep 0.05; done", tmp_path / "log")
    assert not process.stop(signal.SIGTERM, 0.2)
    assert not process.alive


def test_a_paused_one_does_nothing_until_resumed_and_can_be_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _started("echo ready; while :; do echo x; sleep 0.01; done", log)
    process.pause()
    # The signal may be a moment under way; after that not a byte follows.
    size = -1
    while size != log.stat().st_size:
        size = log.stat().st_size
        time.sleep(0.1)
    process.resume()
    _until(lambda: log.stat().st_size > size)
    process.pause()
    assert process.stop(signal.SIGTERM, _PATIENCE_S)


@pytest.mark.skipif(
    not Path("/proc/sys/net").is_dir(), reason="the system does not say which ports are for outgoing"
)
def test_free_ports_are_distinct_free_and_below_those_of_outgoing_connections() -> None:
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(port) and port < lowest_outgoing for port in ports)
    with socket.create_server((LOOPBACK, ports[0])):
        assert not is_free(ports[0])
    assert is_free(ports[0])


def test_a_missing_program_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Process.spawn(Command([str(tmp_path / "nothing")], {}), tmp_path / "log")

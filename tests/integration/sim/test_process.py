from __future__ import annotations

import http.client
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tokenweir.core.errors import ResourceError
from tokenweir.sim.process import SimProcess


@contextmanager
def command(*words: str) -> Generator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tokenweir", "sim", "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def ready_url(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    first, url, last = child.stdout.readline().strip().rsplit(" ", 2)
    assert (first, last) == ("weir sim:", "ready")
    return url


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_at_once_and_cleanly(number: signal.Signals, status: int) -> None:
    with command() as child:
        url = ready_url(child)
        body = b'{"text": "x", "stream": true, "sampling_params": {"max_new_tokens": 100000}}'
        conn = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        conn.request("POST", "/generate", body)
        assert conn.getresponse().read(10)
        child.send_signal(number)
        assert child.wait(20) == status
        conn.close()
        assert child.stderr is not None
        assert child.stderr.read() == ""


def test_flags_environment_and_ready_file_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_SIM__MODEL", "from-environment")
    monkeypatch.setenv("SIM_KEY", "hush")
    ready = tmp_path / "ready"
    words = (
        "--itl",
        "constant:1ms",
        "--fault",
        "500@#1",
        "--api-key",
        "env:SIM_KEY",
        "--ready-file",
        str(ready),
    )
    with command(*words) as child:
        url = ready_url(child)
        assert ready.read_text(encoding="utf-8").strip() == url
        conn = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        conn.request("GET", "/sim/info")
        told = conn.getresponse().read().decode()
        conn.close()
    assert '"model":"from-environment"' in told
    assert '"itl":"constant:1ms"' in told
    assert '"faults":["500@#1"]' in told
    assert "hush" not in told


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--itl", "20"), 2, "has no unit"),
        (("--fault", "explode"), 2, "explode"),
        (("--host", "256.1.1.1"), 2, "256.1.1.1:"),
        (("--port", "65536"), 2, "65535"),
        (("--connections", "1000000000"), 6, "1000000064 open files"),
        (("--script", "/nowhere"), 2, "/nowhere"),
        (("--api-key", "hush"), 2, "env:NAME"),
    ],
)
def test_what_cannot_be_done_is_one_line(words: tuple[str, ...], status: int, said: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if "--connections" in words and hard == resource.RLIM_INFINITY:
        pytest.skip("descriptors are not limited here")
    with command(*words) as child:
        out, complaint = child.communicate(timeout=20)
        assert child.returncode == status
    assert out == ""
    assert complaint.count("\n") == 1
    assert complaint.startswith("weir: ")
    assert said in complaint


def test_a_taken_port_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        command("--port", str(port := taken.getsockname()[1])) as child,
    ):
        _, complaint = child.communicate(timeout=20)
        assert child.returncode == 2
    assert complaint == (
        f"weir: port {port} is in use on 127.0.0.1; stop what uses it, or choose another with --port (0 picks a "
        "free one)\n"
    )


def test_the_child_process_is_started_stopped_and_never_left_over() -> None:
    sim = SimProcess(ttft="constant:0s")
    with pytest.raises(ResourceError, match="does not run"):
        _ = sim.pid
    with sim:
        assert sim.pid > 0
        assert sim.info()["model"] == "sim"
        assert sim.stop() == 0
        assert sim.stop() is None
    with pytest.raises(ResourceError, match="did not start"):
        SimProcess(ttft="fast").start()


def test_it_ends_with_the_program_that_started_it() -> None:
    command = [sys.executable, "-m", "tokenweir.sim"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        child.stdin.write('{"port": 0}\n')
        child.stdin.flush()
        assert ready_url(child)
        child.stdin.close()
        assert child.wait(20) == 0


def test_beyond_the_descriptor_limit_connections_wait_until_one_closes() -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (70, 70));"
        "from tokenweir.sim.__main__ import main; sys.exit(main())"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdin is not None
            assert child.stderr is not None
            child.stdin.write('{"port": 0}\n')
            child.stdin.flush()
            host, port = ready_url(child).removeprefix("http://").split(":")
            socks = [socket.create_connection((host, int(port)), timeout=20) for _ in range(80)]
            assert "raise the limit" in child.stderr.readline()
            for sock in socks[:40]:
                sock.close()
            socks[-1].sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert socks[-1].recv(20).startswith(b"HTTP/1.1 200")
            for sock in socks:
                sock.close()
        finally:
            child.kill()

"""``weir runtime`` as its users meet it: its first lines, its complaints, Ctrl-C, and a run against it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.running import started, weir
from tests.factories.language_models import edit_json, random_llama
from tests.factories.served import Served, serve
from tests.factories.sim_models import directory

from tokenweir.cli.main import run


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated model that answers a word each 20 ms."""
    return directory(tmp_path_factory.mktemp("slow") / "slow", itl="20ms", output_tokens="5000")


class Reader(threading.Thread):
    """Reads one streamed answer in the background. ``first`` is set by its first chunk."""

    def __init__(self, served: Served, tokens: int) -> None:
        super().__init__()
        self._netloc = served.url.removeprefix("http://")
        self._tokens = tokens
        self.first = threading.Event()
        self.text = ""

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._netloc, timeout=60)
        body = {"prompt": "x", "max_tokens": self._tokens, "stream": True, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        try:
            while piece := answer.read1(65_536):
                self.text += piece.decode()
                self.first.set()
        except (http.client.HTTPException, OSError):
            self.text += "[broken off]"
        connection.close()


def test_the_first_lines_tell_where_and_what(slow: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    flags = (
        "--name",
        "named",
        "--context",
        "100",
        "--memory",
        "2GB",
        "--ready-file",
        ready,
        "--grpc-port",
        "0",
    )
    with serve(slow, *flags, log=tmp_path / "log") as served:
        assert ready.read_text() == served.url + "\n"
        first, model, engine, grpc = served.said
        assert first == f"weir runtime: {served.url} ready"
        assert model.startswith(
            "  model   named: sim, weights 0 B, context 100 tokens, 1.0 kB of cache per token"
        )
        assert "memory limit 2.0 GB" in engine
        assert grpc.startswith("  grpc    127.0.0.1:")
        status, body = served.get("/ready")
        assert (status, json.loads(body)) == (200, {"ready": True, "reason": ""})


def test_ctrl_c_lets_what_runs_finish(slow: Path, tmp_path: Path) -> None:
    with serve(slow, log=tmp_path / "log") as served:
        reader = Reader(served, 100)
        reader.start()
        assert reader.first.wait(30)
        served.interrupt()
        deadline = time.monotonic() + 10
        while served.get("/ready")[0] == 200:
            assert time.monotonic() < deadline
        status, told = served.post("/v1/completions", {"prompt": "y"})
        assert status == 503
        assert "draining" in str(told["error"])
        reader.join(30)
        assert reader.text.endswith("data: [DONE]\n\n")
        assert served.process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_second_ctrl_c_does_not_wait(slow: Path, tmp_path: Path) -> None:
    with serve(slow, log=tmp_path / "log") as served:
        reader = Reader(served, 4000)
        reader.start()
        assert reader.first.wait(30)
        served.interrupt()
        while served.get("/ready")[0] == 200:
            pass
        began = time.monotonic()
        served.interrupt()
        assert served.process.wait(30) == 130
        assert time.monotonic() - began < 15
        reader.join(30)
        assert "[DONE]" not in reader.text
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("weir: stopped by the user, twice")


def test_ctrl_c_before_it_is_ready_ends_it(tmp_path: Path) -> None:
    model = directory(tmp_path / "late", faults=[{"kind": "slow_load", "duration": "60s"}])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with started("runtime", str(model), "--port", str(port), log=log) as process:
        wait_for_health(port)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "weir: stopped by the user" in log.read_text()


def wait_for_health(port: int) -> None:
    """Wait until the server lives, which is long before it is ready."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            assert connection.getresponse().status == 200
            return
        finally:
            connection.close()


def test_a_lost_process_comes_back_and_the_server_stays(slow: Path, tmp_path: Path) -> None:
    with serve(slow, log=tmp_path / "log") as served:
        reader = Reader(served, 4000)
        reader.start()
        assert reader.first.wait(30)
        before = json.loads(served.get("/health")[1])["engine"]
        os.kill(before["lifecycle"]["pid"], signal.SIGKILL)
        reader.join(30)
        error = json.loads(reader.text.split("data: ")[-1])["error"]
        assert error["code"] == "engine_restarted"
        deadline = time.monotonic() + 30
        while served.get("/ready")[0] != 200:
            assert served.get("/health")[0] == 200
            assert time.monotonic() < deadline
        after = json.loads(served.get("/health")[1])["engine"]
        assert (after["epoch"], after["restarts"]) == (before["epoch"] + 1, 1)
        status, told = served.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
        assert status == 200
        assert told["usage"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("real") / "tiny")


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command in this process; return its status and its complaint, which is all that it says."""
    code = run(["--log-level", "error", "runtime", *arguments])
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if line.startswith("weir: ")]
    return code, line


def test_bad_directories_are_one_line_with_a_mend(
    tmp_path: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    strange = tmp_path / "strange"
    shutil.copytree(real, strange)
    edit_json(strange / "config.json", model_type="strange_one")
    for path, words in (
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path / "empty", "config.json"),
        (tmp_path / "file.gguf", "GGUF"),
        (strange, "strange_one"),
        (Path("org/model"), "org/model"),
    ):
        code, line = refused(str(path), "--port", "0", capsys=capsys)
        assert code == 2
        assert words in line
        assert ";" in line, "no mend"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--memory", "1kB"), 6, "memory"),
        (("--context", "1000000"), 2, "context"),
        (("--engine", "sim"), 2, "runtime.engine"),
        (("--draft", "/nowhere"), 2, "/nowhere"),
        (("--draft", "/one", "--draft", "/other"), 2, "(/one, /other); give one"),
        (("--api-key", "plain"), 2, "env:NAME"),
        (("--host", "192.0.2.1"), 2, "192.0.2.1"),
        (("--quantise", "5"), 2, "quantise"),
    ],
)
def test_what_cannot_be_is_one_line_with_a_mend(
    real: Path, arguments: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, line = refused(str(real), "--port", "0", *arguments, capsys=capsys)
    assert ended == code
    assert words in line


def test_options_of_a_model_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused("--name", "x", capsys=capsys)
    assert code == 2
    assert "--name" in line


def test_a_taken_port_is_told_with_the_option_that_mends_it(
    slow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, line = refused(str(slow), "--port", str(taken.getsockname()[1]), capsys=capsys)
    assert code == 2
    assert "--port" in line


@pytest.mark.parametrize("engine", ["auto", "mlx"])
def test_without_mlx_it_says_so_and_takes_no_simulator(real: Path, engine: str) -> None:
    without = "import sys; sys.modules['mlx'] = None; from tokenweir.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", without, "runtime", str(real), "--port", "0", "--engine", engine],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "tokenweir[runtime]" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("backend", ["openai", "tokenweir"])
def test_a_run_against_it_is_attributed(slow: Path, tmp_path: Path, backend: str) -> None:
    with serve(slow, log=tmp_path / "log") as served:
        card = json.loads(served.get("/v1/models")[1])["data"][0]
        commit = json.loads(served.get("/version")[1])["commit"]
        load = ("--requests", "4", "--arrival", "concurrency=2", "--max-tokens", "4")
        ended = weir("bench", served.url, "--backend", backend, "--out", str(tmp_path / "runs"), *load)
    assert ended.code == 0, ended.err
    (record,) = (tmp_path / "runs").rglob("run.json")
    run: dict[str, Any] = json.loads(record.read_text())
    provenance = run["provenance"]
    assert provenance["attributed"]
    assert (provenance["backend_commit"], provenance["model_revision"]) == (commit, card["revision"])
    assert run["spec"]["subject"]["engine_flags"].get("engine") == ("sim" if backend == "tokenweir" else None)


def test_a_head_that_is_too_long_or_too_slow_is_refused(tmp_path: Path, slow: Path) -> None:
    settings = tmp_path / "weir.toml"
    settings.write_text('[runtime]\nmax_header_bytes = 2000\nread_timeout = "300ms"\n')
    log = tmp_path / "log"
    command = (
        "--config",
        str(settings),
        "runtime",
        str(slow),
        "--port",
        "0",
        "--ready-file",
        str(tmp_path / "url"),
    )
    with started(*command, log=log) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "url").exists() or not (tmp_path / "url").read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = int((tmp_path / "url").read_text().rpartition(":")[2])
        for sent, status in (
            (b"GET /health HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 3000 + b"\r\n\r\n", b"431"),
            (b"GET /" + b"x" * 3000, b"431"),
            (b"GET /health HTTP/1.1\r\nhost: x\r\n", b"408"),
            (
                b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n",
                b"408",
            ),
        ):
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(sent)
                answer = b""
                while b"mend" not in answer:
                    piece = client.recv(65_536)
                    assert piece, answer
                    answer += piece
            assert answer.split()[1] == status

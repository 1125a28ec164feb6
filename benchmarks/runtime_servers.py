"""Model servers of this machine for the benchmarks: ours, and MLX LM's own, with the same BLAS."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import weir
from benchmarks.runtime_models import fast_blas

NAME = "m"
START_S = 120.0
STOP_S = 20.0


@contextlib.contextmanager
def our_server(model: Path, scratch: Path) -> Iterator[str]:
    """Yield the URL of ``weir runtime`` with a model, ready to answer."""
    ready = scratch / "ready"
    command = weir("runtime", str(model), "--name", NAME, "--port", "0", "--ready-file", str(ready))
    with _process(command, scratch / "runtime.log", {}) as process:
        _wait(process, lambda: ready.exists() and bool(ready.read_text().strip()), scratch / "runtime.log")
        yield ready.read_text().strip()


@contextlib.contextmanager
def mlx_lm_server(model: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    """Yield URL and model name of ``mlx_lm.server`` with its batching as wide as ours, ready to answer."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    command += ["--decode-concurrency", "32", "--prompt-concurrency", "8", "--log-level", "WARNING"]
    hub = scratch / "hub"
    hub.mkdir()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "TRANSFORMERS_VERBOSITY": "error"}
    with _process(command, scratch / "mlx_lm.log", {**fast_blas(), **offline}) as process:
        _wait(process, lambda: answers(url, str(model)), scratch / "mlx_lm.log")
        yield url, str(model)


def answers(url: str, model: str = NAME, *, deadline_s: float = 30.0) -> bool:
    """Return whether the server answers a request for a token."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=deadline_s)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return answer.status == http.client.OK


def health(url: str) -> dict[str, Any]:
    """Return what our server says of itself."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/health")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return found


@contextlib.contextmanager
def _process(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},  # noqa: TID251 - a child is given it whole
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], ready: Any, log: Path) -> None:  # noqa: ANN401 - a function
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

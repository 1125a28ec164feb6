"""Model servers of this machine for the benchmarks: ours, and MLX LM's own, with the same BLAS."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from benchmarks.runtime_models import fast_blas
from benchmarks.servers import free_port, server, weir_server

NAME = "m"


@contextlib.contextmanager
def our_server(model: Path, scratch: Path) -> Generator[str]:
    """Yield the URL of ``weir runtime`` with a model, ready to answer."""
    with weir_server(scratch, "runtime", str(model), "--name", NAME, "--port", "0") as started:
        yield started.told[1]


@contextlib.contextmanager
def mlx_lm_server(model: Path, scratch: Path) -> Generator[tuple[str, str]]:
    """Yield URL and model name of ``mlx_lm.server`` with its batching as wide as ours, ready to answer."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    command += ["--decode-concurrency", "32", "--prompt-concurrency", "8", "--log-level", "WARNING"]
    hub = scratch / "hub"
    hub.mkdir()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "TRANSFORMERS_VERBOSITY": "error"}
    with server(command, lambda _: answers(url, str(model)), environment={**fast_blas(), **offline}):
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

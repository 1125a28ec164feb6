"""A real model server beside us: ``mlx_lm.server`` in its own process, started, watched and ended."""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tokenweir.core.errors import MissingExtraError, ResourceError

_HOST = "127.0.0.1"
_START_DEADLINE_S = 60.0
_POLL_S = 0.05
_STOP_GRACE_S = 5.0
_PORT_TRIES = 4
_LOG_TAIL = 4096


class ModelServer:
    """``mlx_lm.server`` on a model directory, on a free local port, for as long as the ``with`` block lasts.

    ``url`` and ``model`` are valid inside the block; ``model`` is the name to ask the server for. ``threads``
    bounds what the server's numerical libraries use, so that they leave room for the client that measures it.

    Raises:
        MissingExtraError: on entry: the extra ``demo`` is not installed.
        ResourceError: on entry: the server ended or did not answer in time; the message has its last words.
    """

    def __init__(self, model_directory: Path, log: Path, *, threads: int = 1) -> None:
        self.model = str(model_directory.resolve())
        self.url = ""
        self._log = log
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        if importlib.util.find_spec("mlx_lm") is None:
            raise MissingExtraError(
                "the real model server 'mlx_lm' is not installed", mend="pip install 'tokenweir[demo]'"
            )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and wait for it. Does nothing when it does not run."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> None:
        for _ in range(_PORT_TRIES):
            port = _free_port()
            self._process = self._spawn(port)
            if self._ready(port):
                self.url = f"http://{_HOST}:{port}"
                return
            # The server names no port it chose itself, so another process may take ours before it does.
            if not self._port_was_taken():
                break
        raise ResourceError(
            f"mlx_lm.server did not start: {self._last_words()}", mend=f"see {str(self._log)!r} for its log"
        )

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        # The server lists its hub cache when asked for models and fails if there is none.
        cache = self._log.parent / "hub"
        cache.mkdir(parents=True, exist_ok=True)
        variables = {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(cache.resolve()),
            "TRANSFORMERS_VERBOSITY": "error",
            "OMP_NUM_THREADS": str(self._threads),
            "OPENBLAS_NUM_THREADS": str(self._threads),
        }
        # env(1) adds to the environment and becomes the server itself, so the process id is the server's.
        command = ["env", *(f"{name}={value}" for name, value in variables.items())]
        command += [sys.executable, "-m", "mlx_lm", "server", "--model", self.model]
        command += ["--host", _HOST, "--port", str(port), "--temp", "0.8", "--log-level", "WARNING"]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Out of the terminal's foreground group: Ctrl-C is ours to handle, in order.
                process_group=0,
            )

    def _ready(self, port: int) -> bool:
        """Wait until the server has generated a token; whether it could.

        Its health route answers before the model is loaded, while a request waits until it is.
        """
        deadline = time.monotonic() + _START_DEADLINE_S
        process = self._process
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            status = self._ask(port)
            if status is not None:
                return status == http.HTTPStatus.OK
            time.sleep(_POLL_S)
        return False

    def _ask(self, port: int) -> int | None:
        body = json.dumps(
            {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        )
        connection = http.client.HTTPConnection(_HOST, port, timeout=_START_DEADLINE_S)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return answer.status

    def _port_was_taken(self) -> bool:
        process = self._process
        return process is not None and process.poll() is not None and "in use" in self._tail()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._tail().splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line or "ERROR" in line]
        return repr((telling or lines or ["it said nothing"])[-1])

    def _tail(self) -> str:
        return self._log.read_bytes()[-_LOG_TAIL:].decode(errors="replace") if self._log.exists() else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port

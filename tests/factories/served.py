"""``weir runtime`` as a process of its own, on free ports."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenweir.cli.runtime import READY_PREFIX, READY_SUFFIX

READY_S = 60.0


@dataclass
class Served:
    """A server that runs. ``said`` are the lines that it printed."""

    process: subprocess.Popen[str]
    said: list[str]

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.said[0].removeprefix(READY_PREFIX).removesuffix(READY_SUFFIX)

    @property
    def grpc(self) -> str:
        """Where its gRPC door is."""
        (line,) = [line for line in self.said if line.startswith("  grpc")]
        return line.split()[1]

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body."""
        return self._ask("GET", path)

    def post(self, path: str, body: object) -> tuple[int, dict[str, object]]:
        """Return status and JSON body."""
        status, raw = self._ask("POST", path, json.dumps(body))
        return status, json.loads(raw)

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)


@contextmanager
def serve(*arguments: str | Path, log: Path) -> Generator[Served]:
    """Run ``weir runtime`` on a free port; its log goes to ``log``. It is ended with the block."""
    command = [sys.executable, "-m", "tokenweir", "runtime", "--port", "0", *map(str, arguments)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    timer = threading.Timer(READY_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line.rstrip())
            if line.startswith("  grpc" if "--grpc-port" in arguments else "  engine"):
                break
        timer.cancel()
        assert said, log.read_text()
        yield Served(process, said)
    finally:
        timer.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

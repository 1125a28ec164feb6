"""Runs ``weir`` and small servers as real processes and threads on this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WEIR = (sys.executable, "-m", "tokenweir")
WITHOUT_MLX = (
    sys.executable,
    "-c",
    "import sys; sys.modules['mlx_lm'] = None; from tokenweir.cli.main import main; main()",
)
DEADLINE_S = 90.0


@dataclass(frozen=True)
class Ended:
    """A command that ended. ``complaint`` is its last line on standard error that is an error's, or empty."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("weir: ")]
        return lines[-1] if lines else ""


def weir(*arguments: str, prefix: Sequence[str] = (), cwd: Path | None = None) -> Ended:
    """Run ``weir`` with ``arguments`` to its end; ``prefix`` is a command that runs it."""
    done = subprocess.run(
        [*prefix, *WEIR, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=cwd
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def one_line(ended: Ended) -> str:
    """Return the complaint, having checked that it is all there is to read and no traceback is shown."""
    assert "Traceback" not in ended.err
    assert ended.complaint, f"no complaint in {ended.err!r}"
    return ended.complaint


@contextmanager
def started(*arguments: str, log: Path, command: Sequence[str] = WEIR) -> Generator[subprocess.Popen[str]]:
    """Run ``weir`` in the background; its output goes to ``log``. It is ended with the block."""
    with log.open("w") as file:
        process = subprocess.Popen([*command, *arguments], stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


@dataclass
class Scripted:
    """What a scripted server answers to every POST; ``posted`` is set by the first one."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b"{}"
    url: str = ""
    posted: threading.Event = field(default_factory=threading.Event)


@contextmanager
def scripted(status: int, body: object, *, headers: Mapping[str, str] | None = None) -> Generator[Scripted]:
    """Serve one fixed answer to every POST on a free local port; GET answers a model list.

    ``body`` that is not bytes is sent as JSON.
    """
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    script = Scripted(status, headers or {"content-type": "application/json"}, raw)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            pass

        def do_GET(self) -> None:
            self._answer(200, {"content-type": "application/json"}, b'{"object":"list","data":[{"id":"m"}]}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            script.posted.set()
            self._answer(script.status, script.headers, script.body)

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

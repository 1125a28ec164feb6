"""A real gateway in a process of its own, and what is asked of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

from tokenweir.config import child_environment

START_S = 180.0


class GatewayProcess:
    """``weir up`` over its own data, on a free port. ``key`` is the one that its first start printed."""

    def __init__(self, home: Path, settings: str = "") -> None:
        self.home = home
        self._settings = home / "weir.toml"
        self._settings.write_text(settings, encoding="utf-8")
        self._ready = home / "ready"
        self._child: subprocess.Popen[str] | None = None
        self._log = home / "log"
        self.url = ""
        self.key = ""

    def start(self) -> None:
        """Start it and wait until its door is open."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tokenweir", "--config", str(self._settings), "up", "--port", "0"]
        command += ["--ready-file", str(self._ready)]
        with self._log.open("a", encoding="utf-8") as log:
            self._child = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=child_environment({"WEIR_HOME": str(self.home)}),
            )
        deadline = time.monotonic() + START_S
        # The key is printed after the file is written.
        while not (
            self._is_ready() and f"weir up: {self._ready.read_text(encoding='utf-8').strip()}" in self.log()
        ):
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.log())
            time.sleep(0.02)
        self.url = self._ready.read_text(encoding="utf-8").strip()
        printed = [line.split()[1] for line in self.log().splitlines() if line.strip().startswith("key ")]
        self.key = printed[0] if printed else self.key

    def _is_ready(self) -> bool:
        return self._ready.exists() and self._ready.read_text(encoding="utf-8").endswith("\n")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its status."""
        child = self._child
        if child is None:
            return 0
        self._child = None
        child.send_signal(how)
        return child.wait(START_S)

    def signal(self, how: signal.Signals) -> None:
        """Send it a signal, and do not wait."""
        if self._child is not None:
            self._child.send_signal(how)

    def wait(self) -> int:
        """Wait for its end, and return its status."""
        child, self._child = self._child, None
        return child.wait(START_S) if child is not None else 0

    def log(self) -> str:
        """Return what it has printed."""
        return self._log.read_text(encoding="utf-8")

    def client(self, key: str | None = None) -> OpenAI:
        """Return the official client for it, which does not try again by itself."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=30)

    def weir(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a ``weir`` command over the same data."""
        return subprocess.run(
            [sys.executable, "-m", "tokenweir", "--config", str(self._settings), *arguments],
            env=child_environment({"WEIR_HOME": str(self.home)}),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
        )


@contextmanager
def gateway(settings: str = "") -> Generator[GatewayProcess]:
    """Run a gateway with these settings."""
    with tempfile.TemporaryDirectory(prefix="weir-gateway-") as home:
        process = GatewayProcess(Path(home), settings)
        try:
            process.start()
            yield process
        finally:
            process.stop(signal.SIGKILL)
        # An error that no caller can have caused, whatever the test has looked at.
        assert "request failed" not in process.log(), process.log()


def endpoint(name: str, url: str, *, model: str = "sim", kind: str = "sim", more: Sequence[str] = ()) -> str:
    """Return the settings of an endpoint."""
    lines = [
        "[[endpoints]]",
        f'name = "{name}"',
        f'kind = "{kind}"',
        f'url = "{url}"',
        f'model = "{model}"',
        *more,
    ]
    return "\n".join(lines) + "\n"

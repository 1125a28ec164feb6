"""Debian's nginx on deploy/nginx.conf, in a folder of its own and on free ports."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.test_ca import TestCa
from tests.factories.programs import program

CONF = Path(__file__).parents[2] / "deploy" / "nginx.conf"
START_S = 60.0


class Nginx:
    """A server before a gateway. ``url`` is its HTTPS door, ``plain`` its HTTP one."""

    def __init__(self, folder: Path, gateway: str) -> None:
        self._folder = folder
        self.ca = TestCa(folder / "tls")
        self.ca.issue("server")
        secure, plain = _free_ports(2)
        self.url, self.plain = f"https://127.0.0.1:{secure}", f"http://127.0.0.1:{plain}"
        place = urlsplit(gateway).netloc
        text = CONF.read_text(encoding="utf-8")
        # What of it is of the machine that it is made for.
        for old, new in (
            ("server gateway:8080", f"server {place}"),
            ("server notifier:8081", f"server {place}"),
            ("/etc/nginx/tls", str(folder / "tls")),
            ("/run/nginx.pid", str(folder / "pid")),
            ("/dev/stdout", str(folder / "access.log")),
            ("/dev/stderr", str(folder / "error.log")),
            ("        listen [::]:443 ssl http2;\n", ""),
            ("        listen [::]:80;\n", ""),
            ("listen 443", f"listen 127.0.0.1:{secure}"),
            ("listen 80;", f"listen 127.0.0.1:{plain};"),
            ("worker_processes auto", "worker_processes 1"),
            ("worker_rlimit_nofile 65536;\n", ""),
        ):
            assert old in text, old
            text = text.replace(old, new)
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            text = text.replace("http {\n", f"http {{\n    {kind}_temp_path {folder / kind};\n", 1)
        self._conf = folder / "nginx.conf"
        self._conf.write_text(text, encoding="utf-8")
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._child = subprocess.Popen(
            [
                program("nginx", beside=["/usr/sbin"]),
                "-e",
                self._folder / "error.log",
                "-p",
                self._folder,
                "-c",
                self._conf,
                "-g",
                "daemon off;",
            ],
            stderr=subprocess.DEVNULL,
        )
        place = urlsplit(self.url)
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection((place.hostname or "", place.port or 0), timeout=5).close()
            except OSError:
                if self._child.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(self.errors()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it."""
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            child.wait(START_S)

    def errors(self) -> str:
        """Return its error log."""
        log = self._folder / "error.log"
        return log.read_text(encoding="utf-8") if log.exists() else ""

    def accesses(self) -> list[dict[str, Any]]:
        """Return its access log."""
        text = (self._folder / "access.log").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at: nginx cannot choose its own."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@contextmanager
def nginx(folder: Path, gateway: str) -> Generator[Nginx]:
    """Run it before a gateway."""
    made = Nginx(folder, gateway)
    try:
        made.start()
        yield made
    finally:
        made.stop()

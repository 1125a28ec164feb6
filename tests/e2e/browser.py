"""A real browser without a window, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from tests.factories.programs import program

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# The protocol speaks on descriptors 3 and 4.
LAUNCH = (
    "import fcntl, os, sys; r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]); "
    "os.dup2(r, 3); os.dup2(w, 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
Message = dict[str, object]


def chromium() -> str:
    """Return the browser's path; without one the test is skipped, in CI it fails."""
    return program(*NAMES)


class Page:
    """One page. ``problems`` are exceptions, console errors and refused requests since it was opened."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._buffer = b""
        self._seen: list[Message] = []
        self.problems: list[str] = []
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = cast("str", attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> Message:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message: Message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return cast("Message", answer["result"])

    def open(self, path: Path) -> None:
        """Open a file and wait until it has been loaded."""
        self.visit(path.as_uri())

    def visit(self, url: str) -> None:
        """Open a URL and wait until it has been loaded."""
        self._seen.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self._seen):
            self._read()

    def another(self) -> Page:
        """Open another tab of the same browser. What it tells is read while either is asked."""
        return Page(self._out, self._in)

    def run(self, expression: str) -> object:
        """Return the value of a script; it runs apart from the page's own, whatever that allows."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return cast("Message", result["result"]).get("value")

    def press(self, key: str) -> None:
        """Press and release a key where the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def move(self, x: float, y: float) -> None:
        """Move the pointer over what is drawn by now."""
        # The pointer finds what the last frame showed, which may be from before the page was scrolled.
        self.run("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _read(self) -> Message:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser has gone")
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = cast("Message", json.loads(raw))
        self._seen.append(message)
        self._note(message)
        return message

    def _note(self, message: Message) -> None:
        method, params = message.get("method"), cast("Message", message.get("params", {}))
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning"}
        ):
            self.problems.append(json.dumps(params))
        elif method == "Log.entryAdded":
            entry = cast("Message", params["entry"])
            if entry["level"] in {"error", "warning"}:
                self.problems.append(str(entry["text"]))
        elif method == "Network.requestWillBeSent":
            self.requested.append(str(cast("Message", params["request"])["url"]))


@contextmanager
def browser(profile: Path, *flags: str) -> Generator[Page]:
    """Start a browser with a profile of its own and give its page."""
    program = chromium()
    child_in, to_browser = os.pipe()
    from_browser, child_out = os.pipe()
    command = [program, *FLAGS, f"--user-data-dir={profile}", *flags, "about:blank"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(child_in), str(child_out), *command],
        pass_fds=(child_in, child_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(child_in)
    os.close(child_out)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        process.wait(timeout=20)

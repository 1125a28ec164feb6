"""Runs ``weir`` commands as a user would, so that what the demo shows is what the user can type."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from tokenweir.core.errors import ResourceError

_GRACE_S = 4.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A command that ended. ``complaint`` is its line on standard error, empty where there was none."""

    code: int
    out: str
    complaint: str
    seconds: float


class Commands:
    """Runs one ``weir`` command after the other. ``directory`` holds their output and their index of runs."""

    def __init__(self, directory: Path) -> None:
        self._logs = directory / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._settings = ("--set", f"stores.records=sqlite:///{(directory / 'studio.db').resolve()}")

    def shown(self, *arguments: str) -> str:
        """Return the command as a user would type it."""
        return shlex.join(["weir", *arguments])

    def run(self, name: str, *arguments: str) -> Outcome:
        """Run ``weir`` with ``arguments`` to its end, whatever that is; ``name`` names its logs.

        Ctrl-C is passed on, so that the command can keep what it measured, and then raised here.
        """
        command = [sys.executable, "-m", "tokenweir", *self._settings, *arguments]
        out, err = self._logs / f"{name}.out", self._logs / f"{name}.err"
        started = time.monotonic()
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out_file, stderr=err_file, process_group=0
            )
            try:
                code = process.wait()
            except BaseException:
                _end(process)
                raise
        complaints = [line for line in _read(err).splitlines() if line.startswith("weir: ")]
        return Outcome(
            code=code,
            out=_read(out),
            complaint=complaints[-1].removeprefix("weir: ") if complaints else "",
            seconds=time.monotonic() - started,
        )

    def must(self, name: str, *arguments: str) -> Outcome:
        """Run a command that has to succeed.

        Raises:
            ResourceError: it failed; the message is its own.
        """
        outcome = self.run(name, *arguments)
        if outcome.code != 0:
            what = outcome.complaint or f"exit code {outcome.code}"
            raise ResourceError(f"{self.shown(*arguments)!r} failed: {what}", mend=f"see {str(self._logs)!r}")
        return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask once, ask again, then end the process: the two Ctrl-C that a user would press."""
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
        process.send_signal(number)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        return


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")

"""A process that outlives the command that started it, known by pid and start time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

_PROC = Path("/proc")
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Command:
    """What to run: ``argv[0]`` is an absolute path and ``environment`` is all the process sees."""

    argv: Sequence[str]
    environment: Mapping[str, str]


class Process(msgspec.Struct, frozen=True):
    """A running process. ``started`` tells it from a later one that was given the same pid."""

    pid: int
    started: str

    @classmethod
    def spawn(cls, command: Command, log: Path) -> Process:
        """Start ``command`` in a process group of its own, its output appended to ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            command.argv[0],
            [*command.argv],
            command.environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            # The terminal's Ctrl-C goes to the foreground group, which this is not part of.
            setpgroup=0,
            setsigdef=[signal.SIGINT, signal.SIGTERM],
        )
        return cls.of(pid)

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has ``pid`` now; one that is gone already is never alive."""
        row = _row(pid)
        return cls(pid, row.started if row else "")

    @property
    def alive(self) -> bool:
        """Whether it runs; one that ended but was not waited for does not."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        row = _row(self.pid)
        return row is not None and row.started == self.started and not row.ended

    def stop(self, with_signal: signal.Signals, patience_s: float) -> bool:
        """Ask it to end and wait, at most ``patience_s``; what is left of it and all it started is then killed.

        Return whether it obeyed.
        """
        family = self._family()
        # A paused process hears nothing.
        self.resume()
        _send(self, with_signal)
        obeyed = _wait_for_end([self], patience_s)
        self.kill(family)
        return obeyed

    def kill(self, also: Sequence[Process] = ()) -> None:
        """End it and all it started at once, as a crash would, and wait until they are gone."""
        family = [*dict.fromkeys([*self._family(), *also])]
        for process in family:
            _send(process, signal.SIGKILL)
        _wait_for_end(family, 10.0)

    def pause(self) -> None:
        """Stop the clock for it and all it started: connections stay open, nothing answers."""
        for process in self._family():
            _send(process, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        for process in self._family():
            _send(process, signal.SIGCONT)

    def _family(self) -> list[Process]:
        """Return itself and its descendants, ancestors first."""
        if not self.alive:
            return []
        rows = _table()
        family: list[Process] = [self]
        known = {self.pid}
        for _ in rows:
            grown = [(pid, row) for pid, row in rows.items() if row.parent in known and pid not in known]
            if not grown:
                break
            known.update(pid for pid, _ in grown)
            family += [Process(pid, row.started) for pid, row in grown]
        return family


class _Row(NamedTuple):
    parent: int
    ended: bool
    started: str


def _row(pid: int) -> _Row | None:
    if not _PROC.is_dir():
        return _table().get(pid)
    try:
        line = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold both blanks and parentheses itself.
    state, parent, *rest = line.rpartition(")")[2].split()
    # The first thread may be gone while others still hold the process's ports and files.
    return _Row(int(parent), state in "ZX" and int(rest[15]) <= 1, rest[17])


def _table() -> dict[int, _Row]:
    if _PROC.is_dir():
        pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
        return {pid: row for pid in pids if (row := _row(pid))}
    listed = subprocess.run(
        ["/bin/ps", "-axo", "pid=,ppid=,stat=,lstart="], capture_output=True, text=True, check=True
    )
    rows: dict[int, _Row] = {}
    for line in listed.stdout.splitlines():
        pid, parent, state, *started = line.split()
        rows[int(pid)] = _Row(int(parent), state.startswith("Z"), " ".join(started))
    return rows


def _send(process: Process, which: signal.Signals) -> None:
    if process.alive:
        with suppress(ProcessLookupError):
            os.kill(process.pid, which)


def _wait_for_end(processes: Sequence[Process], patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while any(process.alive for process in processes):
        if time.monotonic() >= end:
            return False
        time.sleep(_PAUSE_S)
    return True

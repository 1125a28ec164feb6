"""The processes of one load point: a capture and a finishing process per worker, started, told and awaited."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from tokenweir.bench.engine.live import LiveFigures, read_live
from tokenweir.bench.engine.plan import FinishPlan, WorkerPlan, write_plan
from tokenweir.bench.engine.pool import create_pool
from tokenweir.bench.finishing.glimpse import Ints, read_glimpse
from tokenweir.core.errors import DescriptorError, DiskFullError, UnreachableError, WeirError

_READY_S: Final = 30.0
_LEAD_NS: Final = 5_000_000
"""The start is this far ahead, so that every worker has read it when it comes."""
_POLL_S: Final = 0.1


class Progress(NamedTuple):
    """How a load point stands: counts over all workers, and (TTFT, ITL) histogram counts."""

    elapsed_ns: int
    sent: int
    completed: int
    failed: int
    in_flight: int
    glimpse: Ints
    finishing: bool


Observe = Callable[[Progress], None]


class Crew:
    """Runs one load point with a pair of processes per plan. Use as a context manager: leaving kills what is left."""

    def __init__(self, plans: Sequence[WorkerPlan], finish_plans: Sequence[FinishPlan]) -> None:
        self._plans = plans
        self._finish_plans = list(finish_plans)
        self._captures: list[subprocess.Popen[bytes]] = []
        self._finishers: list[subprocess.Popen[bytes]] = []
        self.start_ns = 0
        self.died: list[int] = []

    def __enter__(self) -> Self:
        for plan in self._plans:
            path = Path(plan.folder) / "plan.json"
            write_plan(path, plan)
            self._spawn(path, plan)
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in (*self._captures, *self._finishers):
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                # What a dead process never read is still in the buffer, and closing tries once more.
                with contextlib.suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()

    def await_ready(self, given_up: Callable[[], bool]) -> bool:
        """Wait until every worker is connected; return False when ``given_up`` says so first.

        Raises:
            UnreachableError: the server takes no connection.
            WeirError: a worker could not start.
        """
        deadline = time.monotonic() + _READY_S
        with selectors.DefaultSelector() as selector:
            # The finishing processes too, lest their start take the capture's time.
            for process in (*self._captures, *self._finishers):
                if process.stdout is not None:
                    selector.register(process.stdout, selectors.EVENT_READ, process)
            waiting = len(self._captures) + len(self._finishers)
            while waiting:
                ready = selector.select(_POLL_S)
                if given_up():
                    return False
                if not ready and time.monotonic() > deadline:
                    message = f"a worker was not ready within {_READY_S:.0f} s"
                    raise UnreachableError(message, mend="check that the server accepts connections")
                for key, _ in ready:
                    selector.unregister(key.fileobj)
                    self._heed(key.data)
                    waiting -= 1
        return True

    def start(self, run_start_ns: int | None = None) -> int:
        """Give the start to all and return it. Rows count from ``run_start_ns``, else from this start."""
        self.start_ns = time.monotonic_ns() + _LEAD_NS
        origin = self.start_ns if run_start_ns is None else run_start_ns
        for plan in self._finish_plans:
            finish = msgspec.structs.replace(plan, start_ns=origin)
            write_plan(Path(plan.folder) / "finish-plan.json", finish)
        self._say(f"start {self.start_ns}\n")
        return self.start_ns

    def cancel(self) -> None:
        """Give up what is open; what was measured is kept."""
        self._say("cancel\n")

    def wait(self, observe: Observe) -> None:
        """Return when all is captured and all rows are written.

        Raises:
            DiskFullError: a process could not write.
        """
        for finishing, processes in ((False, self._captures), (True, self._finishers)):
            while any(process.poll() is None for process in processes):
                observe(self.progress(finishing=finishing))
                self._doze(processes)
        observe(self.progress(finishing=True))
        for process in (*self._captures, *self._finishers):
            if process.returncode:
                self._explain(process)

    def cycles(self) -> int:
        """Return how often the workers went through their lists, the last time perhaps in part."""
        sent = [(read_live(Path(plan.folder) / "live.bin"), plan) for plan in self._plans]
        return max(
            (-(-figures.sent // plan.requests) for figures, plan in sent if figures is not None), default=0
        )

    def progress(self, *, finishing: bool) -> Progress:
        """Return how the load point stands."""
        figures = [
            read_live(Path(plan.folder) / "live.bin") or LiveFigures(0, 0, 0, 0, 0, 0) for plan in self._plans
        ]
        glimpse = sum(
            (read_glimpse(Path(plan.folder) / "glimpse.bin") for plan in self._plans[1:]),
            read_glimpse(Path(self._plans[0].folder) / "glimpse.bin"),
        )
        return Progress(
            elapsed_ns=time.monotonic_ns() - self.start_ns,
            sent=sum(figure.sent for figure in figures),
            completed=sum(figure.completed for figure in figures),
            failed=sum(figure.failed for figure in figures),
            in_flight=sum(figure.in_flight for figure in figures),
            glimpse=glimpse,
            finishing=finishing,
        )

    def _spawn(self, path: Path, plan: WorkerPlan) -> None:
        pool = create_pool(path.parent, portable=plan.portable_poller)
        readable, writable = os.pipe()
        try:
            capture = ["tokenweir.bench.engine.worker", str(path), str(writable), str(pool)]
            self._captures.append(
                _start(capture, stdin=subprocess.PIPE, pass_fds=(writable, pool, plan.payloads_fd))
            )
            finish = ["tokenweir.bench.finishing.process", str(path.parent / "finish-plan.json"), str(pool)]
            self._finishers.append(_start(finish, stdin=readable, pass_fds=(pool,)))
        finally:
            for fd in (readable, writable, pool):
                os.close(fd)

    def _heed(self, process: subprocess.Popen[bytes]) -> None:
        said = process.stdout.readline().decode() if process.stdout is not None else ""
        word, _, rest = said.strip().partition(" ")
        if word == "ready":
            return
        if word == "failed":
            plan = self._plans[self._captures.index(process)]
            message = f"{plan.host}:{plan.port} takes no connection: {rest.partition(' ')[2]}"
            raise UnreachableError(message, mend="start the server, or check host and port")
        process.wait()
        self._explain(process)
        message = "a worker ended before it began"
        raise WeirError(message, mend="run with --log-level debug and report what it says")

    def _say(self, words: str) -> None:
        for process in self._captures:
            if process.stdin is not None and process.poll() is None:
                try:
                    process.stdin.write(words.encode())
                    process.stdin.flush()
                except BrokenPipeError:
                    continue

    def _doze(self, processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                return

    def _explain(self, process: subprocess.Popen[bytes]) -> None:
        """Raise what a process said it died of, or note that it died."""
        said = process.stderr.read().decode(errors="replace").strip() if process.stderr is not None else ""
        code, _, text = said.rpartition("\n")[2].partition(": ")
        kinds: dict[str, type[WeirError]] = {
            error.code: error for error in (DiskFullError, DescriptorError, UnreachableError)
        }
        if code in kinds:
            raise kinds[code](text)
        if process.returncode and process.returncode > 0:
            message = f"a worker failed: {said.rpartition(chr(10))[2] or process.returncode!r}"
            raise WeirError(message, mend="please report it with the lines in run.log")
        self.died.append(process.returncode or 0)


def _start(module: Sequence[str], *, stdin: int, pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a module with its arguments, in a group of its own: Ctrl-C reaches the parent, which tells the others."""
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        process_group=0,
    )

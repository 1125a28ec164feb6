"""``python -m tokenweir.bench.engine.worker PLAN NOTIFY POOL``: one capturing process.

Speaks with its parent by lines: prints ``ready`` (or ``failed ERRNO TEXT``), reads ``start NS`` (CLOCK_MONOTONIC), and
from then on ``cancel``; the end of its input is a cancel too, so a worker never outlives its parent. Announces
segments on the descriptor in its second argument, fills them in the memory that is the third's, and writes
``conduct.json`` at the end, whatever ended it.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from tokenweir.bench.engine.capture import Capture
from tokenweir.bench.engine.live import LiveCounters
from tokenweir.bench.engine.plan import WorkerPlan, load_ints
from tokenweir.bench.engine.priority import go_first
from tokenweir.bench.engine.segment import Outlet
from tokenweir.core.errors import DiskFullError, WeirError
from tokenweir.poller import make_poller

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Conduct(msgspec.Struct, frozen=True, kw_only=True):
    """What the capture cost and how it went.

    ``cpu_ns`` is user + system between start and end, without the ``spin_ns`` spent awake before due requests.
    """

    worker: int
    cpu_ns: int
    spin_ns: int
    wall_ns: int
    rss_max_bytes: int
    kernel_stamps: bool
    unstamped: int
    retried: int
    in_flight_max: int
    sent: int


def run(plan: WorkerPlan, notify_fd: int, pool_fd: int, control_fd: int) -> None:
    """Do what the plan says. Raises WeirError when the disk is full."""
    folder = Path(plan.folder)
    live = LiveCounters(folder / "live.bin")
    try:
        capture = Capture(
            plan,
            poller=make_poller(portable=plan.portable_poller),
            outlet=Outlet(folder, pool_fd, notify_fd),
            payload_of=load_ints(Path(plan.payload_of)),
            live=live,
            control_fd=control_fd,
        )
        code = capture.warm_up()
    except OSError as error:
        # A name that cannot be looked up has a number of its own, below zero.
        code = error.errno if error.errno and error.errno > 0 else errno.EHOSTUNREACH
    else:
        if not code:
            _measure(plan, capture, live, control_fd)
    if code:
        sys.stdout.write(f"failed {code} {os.strerror(code)}\n")
        sys.stdout.flush()


def _measure(plan: WorkerPlan, capture: Capture, live: LiveCounters, control_fd: int) -> None:
    """Wait for the start, run, and say how it went even when it went wrong."""
    schedule = None if plan.schedule is None else load_ints(Path(plan.schedule))
    # Nothing in the loop makes reference cycles; a collection amid it would only be a pause.
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    word, _, start = _line(control_fd).partition(" ")
    if word != "start":
        return
    wall, cpu = time.monotonic_ns(), time.process_time_ns()
    try:
        capture.run(int(start), schedule)
    finally:
        conduct = Conduct(
            worker=plan.worker,
            cpu_ns=time.process_time_ns() - cpu - capture.spin.spent_ns,
            spin_ns=capture.spin.spent_ns,
            wall_ns=time.monotonic_ns() - wall,
            rss_max_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            kernel_stamps=plan.kernel_stamps,
            unstamped=capture.unstamped,
            retried=capture.retried,
            in_flight_max=live.in_flight_max,
            sent=live.sent,
        )
        (Path(plan.folder) / "conduct.json").write_bytes(msgspec.json.encode(conduct))


def _line(fd: int) -> str:
    text = b""
    while not text.endswith(b"\n"):
        piece = os.read(fd, 64)
        if not piece:
            break
        text += piece
    return text.decode()


def main(arguments: list[str]) -> int:
    """Run one worker; return the process status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    go_first()
    plan = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=WorkerPlan)
    try:
        run(plan, int(arguments[1]), int(arguments[2]), sys.stdin.fileno())
    except WeirError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return error.exit_code
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        full = DiskFullError(
            f"nothing more can be written to {plan.folder!r}: {error.strerror}",
            mend="free some room there, or choose another folder with --out",
        )
        sys.stderr.write(f"{full.code}: {full}\n")
        return full.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

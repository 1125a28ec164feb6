"""``python -m tokenweir.bench.finishing.process PLAN POOL``: one finishing process.

Prints ``ready``, then reads a byte per finished segment from its input, reduces that segment and gives its place back;
at the end of input it writes ``finish.json``. The plan is read when the first byte comes, because the run's start is
not known before. While the capture goes on it runs at idle priority, so it takes only the time that the capture and a
local server leave.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

import msgspec

from tokenweir.backends.registry import backend
from tokenweir.bench.engine.plan import FinishPlan
from tokenweir.bench.engine.priority import go_along, go_last
from tokenweir.bench.finishing.glimpse import Glimpse
from tokenweir.bench.finishing.reduce import Reducer
from tokenweir.bench.finishing.segments import Inlet
from tokenweir.bench.tokenizers import find_tokenizer
from tokenweir.core.errors import WeirError
from tokenweir.core.requests import GenerateRequest


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What the finishing process learnt beside the rows: the names behind indexes, and what it cost."""

    worker: int
    errors: list[str]
    reasons: list[str]
    messages: dict[str, str]
    clock_steps: int
    cpu_ns: int
    rss_max_bytes: int


def run(plan: FinishPlan, announced: bytes, notify_fd: int, pool_fd: int) -> Finished:
    """Reduce segments as they are announced, ``announced`` first, until the announcements end."""
    folder = Path(plan.folder)
    reducer = Reducer(
        plan,
        codec=backend(plan.backend),
        request=msgspec.json.decode(plan.request, type=GenerateRequest),
        tokenizer=None if plan.tokenizer is None else find_tokenizer(plan.tokenizer),
        observe=Glimpse(folder / "glimpse.bin").observe,
    )
    inlet = Inlet(folder, pool_fd)
    gc.freeze()
    last = True
    cpu = time.process_time_ns()
    while announced:
        for what in announced:
            with inlet.take(what) as captured:
                reducer.feed(captured)
            if last and _hung_up(notify_fd):
                # The capture is over, so nobody needs to be given way to, and somebody waits for the rows.
                go_along()
                last = False
        announced = os.read(notify_fd, 64)
    reducer.close()
    return Finished(
        worker=plan.worker,
        errors=reducer.errors,
        reasons=reducer.reasons,
        messages=reducer.messages,
        clock_steps=reducer.clock_steps,
        cpu_ns=time.process_time_ns() - cpu,
        rss_max_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _hung_up(fd: int) -> bool:
    """Whether the other end of a pipe is closed, though there may still be something to read."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(mask & select.POLLHUP for _, mask in poll.poll(0))


def main(arguments: list[str]) -> int:
    """Run one finishing process; return the process status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    go_last()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    notify_fd = sys.stdin.fileno()
    announced = os.read(notify_fd, 64)
    if not announced and not Path(arguments[0]).exists():
        # The worker never got its start, so there is nothing to finish.
        return 0
    plan = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=FinishPlan)
    try:
        finished = run(plan, announced, notify_fd, int(arguments[1]))
    except WeirError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"disk_full: rows cannot be written to {plan.folder!r}: {error.strerror}\n")
        return 6
    (Path(plan.folder) / "finish.json").write_bytes(msgspec.json.encode(finished))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

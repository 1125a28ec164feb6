"""What every benchmark shares: pinned processes, CPU and memory as the kernel counts them, tables, results.

With two cores or more the simulator has core 0 and the client core 1, so that neither takes the other's time.
Every figure is the median of interleaved runs, beside its least and greatest, and every table states the load
average and the CPU time that the hypervisor took away (steal): absolute times are worth little without them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

from tokenweir.sim.process import SimFlags, SimProcess

RESULTS = Path(__file__).parent / "results"
TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = CORES[0]
CLIENT_CORE = CORES[1] if len(CORES) > 1 else CORES[0]

COMMAND_DEADLINE_S = 600.0
SAMPLE_S = 0.05
PATIENCE_S = 60.0
QUIET = 0.05
CAPTURE = "tokenweir.bench.engine.worker"
FINISHING = "tokenweir.bench.finishing.process"


@dataclass(frozen=True)
class Figure:
    """One line of a table: a target and what every run measured.

    ``better`` says whether the target is a floor (``higher``) or a ceiling (``lower``); ``None`` for a figure
    that only informs.
    """

    what: str
    unit: str
    values: tuple[float, ...]
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; ``None`` without one."""
        if self.target is None:
            return None
        return self.median >= self.target if self.better == "higher" else self.median <= self.target


@dataclass(frozen=True)
class Result:
    """What one benchmark measured.

    ``steal`` and ``others`` are the shares of the machine's CPU time, 0 to 1, that the hypervisor took and that
    processes used which are no part of the benchmark.
    """

    name: str
    how: str
    figures: tuple[Figure, ...]
    rounds: int
    load_average: float = 0.0
    steal: float = 0.0
    others: float = 0.0
    at: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code, output, wall and CPU seconds (its children's included)."""

    code: int
    output: str
    wall_s: float
    cpu_s: float
    peak_pss_bytes: int = 0
    load_pss_bytes: int = 0
    load_cpu_s: float = 0.0
    cpu_by_command: Mapping[str, float] = field(default_factory=dict[str, float])

    def cpu_of(self, part: str) -> float:
        """Return the CPU seconds of those of its processes whose command line has ``part`` in it."""
        return sum(cpu for command, cpu in self.cpu_by_command.items() if part in command)


def weir(*arguments: str) -> list[str]:
    """Return the command line of ``weir`` with ``arguments``."""
    return [sys.executable, "-m", "tokenweir", *arguments]


def simulator(**flags: Unpack[SimFlags]) -> SimProcess:
    """Return a simulator for a core of its own, to be used in a ``with`` block."""
    raise_descriptor_limit()
    return SimProcess(cpus=frozenset({SERVER_CORE}), **flags)


def run(
    command: Sequence[str],
    *,
    cores: Sequence[int] = (CLIENT_CORE,),
    work: Callable[[], float] | None = None,
    memory: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command on ``cores`` to its end.

    With ``work``, a number that grows while the server works, the command's CPU time from the first to the
    last growth is counted apart (``load_cpu_s``): the load itself, without start-up and reports. With
    ``memory`` the peak of its processes' memory (PSS) is sampled, and apart from it the peak while a capturing
    process runs (``load_pss_bytes``). CPU time by command line is sampled too, up
    to a twentieth of a second before each process ends.
    """
    raise_descriptor_limit()
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},  # noqa: TID251 - a child is given it whole
        )
        os.sched_setaffinity(process.pid, set(cores))
        watch = _Watch(process.pid, work=work, memory=memory)
        watch.start()
        killer = threading.Timer(COMMAND_DEADLINE_S, process.send_signal, (signal.SIGKILL,))
        killer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            killer.cancel()
            watch.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        output.seek(0)
        return Finished(
            code=process.returncode,
            output=output.read(),
            wall_s=wall,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_pss_bytes=watch.peak_pss,
            load_pss_bytes=watch.load_pss,
            load_cpu_s=watch.load_cpu,
            cpu_by_command=watch.by_command(),
        )


class _Watch(threading.Thread):
    """Samples a process tree: CPU time by process, memory, and CPU time while the server works."""

    def __init__(self, pid: int, *, work: Callable[[], float] | None, memory: bool) -> None:
        super().__init__(daemon=True)
        self.peak_pss = 0
        self.load_pss = 0
        self.load_cpu = 0.0
        self._pid = pid
        self._work = work
        self._memory = memory
        self._ended = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}

    def by_command(self) -> dict[str, float]:
        """Return the CPU seconds of each process, by its number and command line."""
        return {f"{pid} {command}": cpu for pid, (command, cpu) in self._seen.items()}

    def run(self) -> None:
        """Sample until told to stop."""
        done = self._work() if self._work is not None else 0.0
        before, opened = 0.0, None
        while not self._ended.wait(SAMPLE_S):
            capturing = False
            for pid in tree(self._pid):
                command = _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
                if command:
                    self._seen[pid] = (command, process_cpu(pid))
                    capturing = capturing or CAPTURE in command
            if self._memory:
                pss = tree_pss(self._pid)
                self.peak_pss = max(self.peak_pss, pss)
                self.load_pss = max(self.load_pss, pss if capturing else 0)
            if self._work is not None:
                cpu, now = tree_cpu(self._pid), self._work()
                if now > done:
                    opened = before if opened is None else opened
                    self.load_cpu = cpu - opened
                before, done = cpu, now

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()
        self.join()


def tree(pid: int) -> list[int]:
    """Return the process and all its living descendants."""
    found = [pid]
    for parent in found:
        for task in _listing(Path(f"/proc/{parent}/task")):
            found += [int(child) for child in _text(task / "children").split()]
    return found


def tree_cpu(pid: int) -> float:
    """Return the CPU seconds of a process, its descendants and those it has waited for."""
    return sum(process_cpu(member, waited=True) for member in tree(pid))


def process_cpu(pid: int, *, waited: bool = False) -> float:
    """Return the CPU seconds of one process; with ``waited`` also those of the children it waited for."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(int(value) for value in fields[11 : 15 if waited else 13]) / TICK if len(fields) > 14 else 0.0


def tree_pss(pid: int) -> int:
    """Return the memory of a process and its descendants: PSS, so that shared pages count once."""
    total = 0
    for member in tree(pid):
        for line in _text(Path(f"/proc/{member}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _listing(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(directory.iterdir())
    return []


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit of open files to the hard one; children inherit it."""
    import resource  # noqa: PLC0415 - absent on Windows, where only the tables are read

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def load_run(directory: Path) -> dict[str, Any]:
    """Return ``run.json`` of the one run below ``directory`` (the newest, if several)."""
    found = sorted(directory.rglob("run.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RuntimeError(f"no run.json below {directory}")
    return json.loads(found[-1].read_text())


def metric(summary: Mapping[str, Any], tag: str, statistic: str) -> float:
    """Return one statistic of one metric of a summary."""
    value = summary["metrics"][tag][statistic]
    if value is None:
        raise RuntimeError(f"{tag}.{statistic} has no value: {summary['metrics'][tag].get('note')}")
    return float(value)


def bench(
    out: Path, url: str, *arguments: str, cores: Sequence[int] = (CLIENT_CORE,), memory: bool = False
) -> tuple[Finished, dict[str, Any]]:
    """Run ``weir bench`` on a simulator; return how it ended and its ``run.json``."""
    finished = run(
        weir("bench", url, "--backend", "sim", "--out", str(out), *arguments), cores=cores, memory=memory
    )
    if finished.code != 0:
        raise RuntimeError(f"weir bench {' '.join(arguments)} ended with {finished.code}: {finished.output}")
    return finished, load_run(out)


class Ticks(NamedTuple):
    """CPU seconds of the whole machine so far: all there were, busy ones, stolen ones, and this program's own."""

    total: float
    busy: float
    stolen: float
    ours: float


def ticks() -> Ticks:
    """Return the machine's CPU time so far."""
    fields = [int(value) / TICK for value in _text(Path("/proc/stat")).splitlines()[0].split()[1:9]]
    # The machine's own count of busy time is sampled, and misses who wakes often and briefly; processes' is exact.
    busy = sum(process_cpu(int(path.name), waited=True) for path in Path("/proc").glob("[0-9]*"))
    return Ticks(time.monotonic() * len(CORES), busy, fields[7], tree_cpu(os.getpid()))


def wakeup_lateness_p99_ms() -> float:
    """Return how late this machine wakes a process on the client's core that only sleeps, 2,000 times a second.

    No client can be more punctual than that.
    """
    script = (
        "import time\n"
        "late, due = [], time.perf_counter()\n"
        "for _ in range(4000):\n"
        "    due += 0.0005\n"
        "    time.sleep(max(0.0, due - time.perf_counter()))\n"
        "    late.append(time.perf_counter() - due)\n"
        "print(sorted(late)[3960] * 1e3)\n"
    )
    return float(run([sys.executable, "-c", script]).output)


def wait_for_quiet() -> None:
    """Wait until other processes leave the machine alone for a second, but no longer than a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        before = ticks()
        time.sleep(1.0)
        after = ticks()
        if (after.busy - before.busy) / (after.total - before.total) < QUIET:
            return


def measured(
    name: str,
    how: str,
    rounds: int,
    measure: Callable[[Path], Mapping[str, float]],
    figures: Sequence[Figure],
) -> Result:
    """Run ``measure`` (one interleaved round, given a scratch directory) ``rounds`` times.

    It returns a value by each figure's ``what``; ``figures`` name targets and units and come without values.
    """
    spent = Ticks(0, 0, 0, 0)
    values: dict[str, list[float]] = {figure.what: [] for figure in figures}
    for number in range(rounds):
        wait_for_quiet()
        before = ticks()
        with tempfile.TemporaryDirectory(prefix="weir-bench-") as scratch:
            found = measure(Path(scratch))
        spent = Ticks(*(done - start + end for done, start, end in zip(spent, before, ticks(), strict=True)))
        for what, value in found.items():
            values[what].append(value)
        shown = ", ".join(f"{what} {readable(value)}" for what, value in found.items())
        print(f"  {name} {number + 1}/{rounds}: {shown}", flush=True)
    return Result(
        name=name,
        how=how,
        figures=tuple(
            Figure(f.what, f.unit, tuple(values[f.what]), f.target, f.better)
            for f in figures
            if values[f.what]
        ),
        rounds=rounds,
        load_average=os.getloadavg()[0],
        steal=spent.stolen / spent.total,
        others=max(spent.busy - spent.ours, 0.0) / spent.total,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def save(result: Result) -> Path:
    """Write a result below ``benchmarks/results`` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result.name}.json"
    path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return path


def load(path: Path) -> Result:
    """Return a result that :func:`save` wrote."""
    raw = json.loads(path.read_text())
    figures = tuple(Figure(**{**figure, "values": tuple(figure["values"])}) for figure in raw.pop("figures"))
    return Result(**{**raw, "figures": figures, "notes": tuple(raw["notes"])})


def readable(value: float) -> str:
    """Return a number with as many digits as a reader needs."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def target(figure: Figure) -> str:
    """Return a figure's target as the tables show it."""
    if figure.target is None:
        return "–"
    return f"{'≥' if figure.better == 'higher' else '≤'} {readable(figure.target)}"


def markdown(results: Sequence[Result]) -> str:
    """Return the table of all results for ``docs/performance.md``."""
    lines = [
        "| benchmark | figure | unit | target | median | min – max | n | others | steal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for figure in result.figures:
            mark = {True: "", False: " ✗", None: ""}[figure.met]
            spread = f"{readable(min(figure.values))} – {readable(max(figure.values))}"
            lines.append(
                f"| {result.name} | {figure.what} | {figure.unit} | {target(figure)} | "
                f"**{readable(figure.median)}**{mark} | {spread} | {len(figure.values)} | "
                f"{result.others:.0%} | {result.steal:.1%} |"
            )
    return "\n".join(lines)


def table(result: Result) -> str:
    """Return a result as text for a terminal."""
    rows = [("figure", "unit", "target", "median", "min – max", "")]
    for figure in result.figures:
        verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
        spread = f"{readable(min(figure.values))} – {readable(max(figure.values))}"
        rows.append((figure.what, figure.unit, target(figure), readable(figure.median), spread, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = [f"{result.name}: {result.how}"]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
    lines.append(
        f"  {result.rounds} runs; load average {result.load_average:.2f}, "
        f"other processes {result.others:.0%}, steal {result.steal:.1%}"
    )
    lines += [f"  note: {note}" for note in result.notes]
    return "\n".join(lines)

"""The view of a run while it goes on: a few lines that update on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Final, Literal, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tokenweir.bench.crew import Progress
from tokenweir.bench.finishing.glimpse import Ints, percentile
from tokenweir.core.units import format_duration

_PLAIN_EVERY_S: Final = 5.0


class View(Protocol):
    """What shows progress."""

    def begin(self, title: str, planned: int | None, duration_ns: int | None) -> None:
        """A load point begins."""
        ...

    def show(self, progress: Progress) -> None:
        """It stands so."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class SilentView:
    """Shows nothing."""

    def begin(self, title: str, planned: int | None, duration_ns: int | None) -> None:
        """Ignore it."""
        del title, planned, duration_ns

    def show(self, progress: Progress) -> None:
        """Ignore it."""
        del progress

    def close(self) -> None:
        """Nothing to release."""


class PlainView:
    """A line at the start, every few seconds and at the end; nothing that a log file could not hold."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._title = ""
        self._planned: int | None = None
        self._duration_ns: int | None = None
        self._next = 0.0
        self._done = False

    def begin(self, title: str, planned: int | None, duration_ns: int | None) -> None:
        """Print what begins."""
        self._title, self._planned, self._duration_ns = title, planned, duration_ns
        self._next = time.monotonic() + _PLAIN_EVERY_S
        self._done = False
        self._stream.write(f"{title}: started\n")
        self._stream.flush()

    def show(self, progress: Progress) -> None:
        """Print a line when one is due, and one at the end."""
        ended = progress.finishing and not self._done
        if time.monotonic() < self._next and not ended:
            return
        self._next = time.monotonic() + _PLAIN_EVERY_S
        self._done = self._done or progress.finishing
        self._stream.write(f"{self._title}: {_line(progress, self._planned)}\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing to release."""


class RichView:
    """A table that updates in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._title = ""
        self._planned: int | None = None
        self._duration_ns: int | None = None
        self._before: Progress | None = None
        self._rate = 0.0

    def begin(self, title: str, planned: int | None, duration_ns: int | None) -> None:
        """Begin a new table; the one before stays on the screen."""
        self.close()
        self._title, self._planned, self._duration_ns = title, planned, duration_ns
        self._before = None
        self._rate = 0.0
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, progress: Progress) -> None:
        """Update the table."""
        if self._live is None:
            return
        if self._before is not None and progress.elapsed_ns > self._before.elapsed_ns:
            elapsed_s = (progress.elapsed_ns - self._before.elapsed_ns) / 1e9
            fresh = (progress.completed - self._before.completed) / elapsed_s
            self._rate += (fresh - self._rate) * min(1.0, elapsed_s)
        self._before = progress
        self._live.update(self._table(progress), refresh=True)

    def close(self) -> None:
        """Take the table off the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self, progress: Progress) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(f"[bold]{self._title}[/]", _bar(_share(progress, self._planned, self._duration_ns)))
        of = f" of {self._planned}" if self._planned is not None else ""
        doing = (
            "writing rows"
            if progress.finishing
            else format_duration(max(0, progress.elapsed_ns) // 10**8 * 10**8)
        )
        table.add_row("time", doing)
        table.add_row(
            "requests", f"{progress.completed + progress.failed}{of} done, {progress.in_flight} in flight"
        )
        table.add_row("rate", f"{self._rate:.1f} requests/s")
        table.add_row("errors", f"[red]{progress.failed}[/]" if progress.failed else "0")
        table.add_row("TTFT p50 / p99", _latencies(progress.glimpse[0]))
        table.add_row("ITL p50 / p99", _latencies(progress.glimpse[1]))
        return table


def make_view(kind: Literal["auto", "rich", "plain", "off"]) -> View:
    """Return the view of that kind; ``auto`` is rich on a terminal, else plain. It draws on standard error."""
    if kind == "off":
        return SilentView()
    console = Console(stderr=True)
    if kind == "rich" or (kind == "auto" and console.is_terminal):
        return RichView(console)
    return PlainView(sys.stderr)


def _line(progress: Progress, planned: int | None) -> str:
    of = f" of {planned}" if planned is not None else ""
    done = progress.completed + progress.failed
    rate = done / (progress.elapsed_ns / 1e9) if progress.elapsed_ns > 0 else 0.0
    return (
        f"{max(0, progress.elapsed_ns) / 1e9:.1f} s, {done}{of} done, {progress.in_flight} in flight, {rate:.1f}/s, "
        f"errors {progress.failed}, TTFT p50/p99 {_latencies(progress.glimpse[0])}, "
        f"ITL p50/p99 {_latencies(progress.glimpse[1])}"
    )


def _latencies(counts: Ints) -> str:
    low, high = percentile(counts, 50), percentile(counts, 99)
    return "–" if low is None or high is None else f"{low / 1e6:.3g} / {high / 1e6:.3g} ms"


def _share(progress: Progress, planned: int | None, duration_ns: int | None) -> float:
    shares = [0.0]
    if planned:
        shares.append((progress.completed + progress.failed) / planned)
    if duration_ns:
        shares.append(progress.elapsed_ns / duration_ns)
    return min(1.0, max(shares))


def _bar(share: float) -> str:
    filled = round(share * 30)
    return f"[cyan]{'━' * filled}[/][dim]{'━' * (30 - filled)}[/] {share:4.0%}"

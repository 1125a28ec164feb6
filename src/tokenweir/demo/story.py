"""The demo in five steps: two servers, a sweep, a real model, a measured change, a comparison refused."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenweir.bench.records.model import LoadResult, Run
from tokenweir.core.errors import MissingExtraError, ResourceError, UnlikeError, WeirError
from tokenweir.demo.commands import Commands
from tokenweir.demo.telling import Teller
from tokenweir.runtime.process import RuntimeProcess
from tokenweir.runtime.shipped import shipped_model
from tokenweir.sim.process import SimFlags, SimProcess

STEPS = 5
_CORPUS = ("--corpus", "weir-mix", "--max-tokens", "32", "--seed", "7")
_COMPARED = ("--metric", "ttft", "--metric", "tpot", "--metric", "output_throughput")
_REFUSED = UnlikeError.exit_code

# A server whose tokens slow down as its batch grows, before and after a change that halves the slowdown.
_SLOW, _FAST = 0.04, 0.02
_BEFORE = SimFlags(ttft="uniform:30ms..50ms", itl="normal:8ms,1ms", slowdown=_SLOW)
_AFTER = SimFlags(slowdown=_FAST)


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything goes, and how long each load lasts. ``requests`` is for each of the compared runs."""

    out: Path
    sweep: str = "1,4,16"
    sweep_seconds: int = 5
    real_requests: int = 48
    requests: int = 320

    @classmethod
    def quick(cls, out: Path) -> DemoOptions:
        """Return the options with which everything is shown and little is measured."""
        return cls(out=out, sweep="1,4", sweep_seconds=1, real_requests=8, requests=48)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A server to measure, by the words of the command line."""

    name: str
    url: str
    model: str
    backend: str


class Demo:
    """Tells the story once. All it writes is below ``options.out``; what it starts ends with :meth:`run`."""

    def __init__(self, options: DemoOptions, teller: Teller) -> None:
        self._options = options
        self._teller = teller
        self._commands = Commands(options.out)
        # A second demo in the same place adds to the first.
        self._runs = options.out / time.strftime("%Y%m%d-%H%M%S")
        self._reports: list[tuple[str, Path]] = []

    def run(self) -> tuple[Path, ...]:
        """Tell the story and return the run directories, in order.

        Raises:
            ResourceError: a server or a command of the demo failed; the message is its own.
        """
        with contextlib.ExitStack() as servers:
            simulator, simulated, real = self._start(servers)
            sweep = self._sweep(simulated)
            measured = self._real(real)
            before, after = self._change(simulator, simulated)
        self._refusal(sweep, measured)
        self._close(before, after)
        return tuple(path for _, path in self._reports)

    def _start(self, servers: contextlib.ExitStack) -> tuple[SimProcess, Endpoint, Endpoint]:
        teller = self._teller
        teller.step(
            "Two servers on this machine", "A simulator that knows its true timings, and a real model."
        )
        simulator = servers.enter_context(SimProcess(**_BEFORE))
        teller.note(f"simulator    {simulator.url}")
        simulated = Endpoint(name="simulator", url=simulator.url, model="sim", backend="sim")
        try:
            with teller.busy("starting weir runtime on the model that ships"):
                server = servers.enter_context(
                    RuntimeProcess(_model(), self._log("runtime.log"), flags=self._own_settings())
                )
        except (MissingExtraError, ResourceError) as error:
            teller.warn(f"no real model server: {error}")
            second = servers.enter_context(SimProcess(**_BEFORE))
            teller.note(f"instead, a second simulator answers as an OpenAI server: {second.url}")
            return (
                simulator,
                simulated,
                Endpoint(name="second", url=second.url, model="sim", backend="openai"),
            )
        teller.note(f"weir runtime {server.url}")
        return (
            simulator,
            simulated,
            Endpoint(name="real", url=server.url, model=server.model, backend="tokenweir"),
        )

    def _sweep(self, simulated: Endpoint) -> Path:
        self._teller.step(
            "A sweep: how does it behave as the load grows?",
            "The simulator slows down as its batch grows; each load point says whether to trust its numbers.",
        )
        load = ("--arrival", f"concurrency={self._options.sweep}", "--warmup", "500ms")
        load += ("--duration", f"{self._options.sweep_seconds}s", "--slo", "ttft=200ms,tpot=12ms")
        return self._bench("sweep", simulated, *load)

    def _real(self, real: Endpoint) -> Path:
        served = (
            "The model that ships, behind weir runtime"
            if real.backend == "tokenweir"
            else "A second simulator, in the place of a real model"
        )
        self._teller.step("The same client on the other server", f"{served}, on the corpus that ships.")
        load = ("--arrival", "concurrency=4", "--requests", str(self._options.real_requests))
        return self._bench("real", real, *load)

    def _change(self, simulator: SimProcess, simulated: Endpoint) -> tuple[Path, Path]:
        teller = self._teller
        teller.step(
            "Did a change make it faster?",
            "The same workload before and after; each prompt is compared with itself.",
        )
        load = ("--arrival", "concurrency=16", "--requests", str(self._options.requests))
        before = self._bench("before", simulated, *load)
        simulator.flags(**_AFTER)
        teller.note(f"the change: batch slowdown {_SLOW} becomes {_FAST}")
        after = self._bench("after", simulated, *load)
        words = ("compare", str(before), str(after), *_COMPARED)
        teller.command(self._commands.shown(*words))
        teller.text(self._commands.must("compare", *words).out)
        return before, after

    def _refusal(self, one: Path, other: Path) -> None:
        teller = self._teller
        teller.step(
            "What may not be compared is refused",
            "A sweep of the simulator and a run on the other server asked different things.",
        )
        words = ("compare", str(one), str(other))
        teller.command(self._commands.shown(*words))
        outcome = self._commands.run("refusal", *words)
        if outcome.code != _REFUSED:
            raise WeirError(
                f"unlike runs were not refused (exit code {outcome.code})", mend="please report this as a bug"
            )
        teller.text(outcome.out)
        teller.text(outcome.complaint)
        teller.note(f"exit code {outcome.code}: a script would have stopped here")

    def _close(self, before: Path, after: Path) -> None:
        teller = self._teller
        teller.note("")
        teller.note("The reports, each one page that opens without a network:", style="bold")
        for name, path in self._reports:
            teller.note(f"{name:<7} {path / 'report.html'}")
        teller.note("")
        teller.note("Next:", style="bold")
        teller.command(
            "weir bench http://HOST:PORT --model NAME --backend openai --arrival concurrency=1,8,64"
        )
        teller.command(self._commands.shown("compare", str(before), str(after)))
        teller.command("weir bench calibrate   # what this client can do on this machine, and its error")

    def _bench(self, name: str, endpoint: Endpoint, *load: str) -> Path:
        """Run one ``weir bench``, show what it found and return the run's directory."""
        out = self._runs / name
        words = ("bench", endpoint.url, "--model", endpoint.model, "--backend", endpoint.backend)
        words += (*_CORPUS, *load, "--label", f"demo={name}", "--out", str(out))
        self._teller.command(self._commands.shown(*words))
        with self._teller.busy("measuring"):
            self._commands.must(name, *words)
        self._show(msgspec.json.decode((out / "run.json").read_bytes(), type=Run))
        self._reports.append((name, out))
        return out

    def _show(self, run: Run) -> None:
        header = (
            "load",
            "n",
            "requests/s",
            "TTFT p50",
            "p99 ms",
            "TPOT p50",
            "p99 ms",
            "tokens/s",
            "verdict",
        )
        self._teller.table(header, [_row(load) for load in run.loads])
        for load in run.loads:
            if load.summary.verdict.trust != "trusted":
                self._teller.warn(f"{load.arrival}: client-bound: {'; '.join(load.summary.verdict.reasons)}")
            if load.summary.counts.errors:
                self._teller.warn(f"{load.arrival}: failed: {load.summary.counts.errors}")
        if not run.provenance.attributed:
            unknown = [
                name for name in ("backend_commit", "model_revision") if name in run.provenance.missing
            ]
            self._teller.note(
                f"unattributed: the server does not say its {' and '.join(unknown)}, and none was stated",
                style="dim",
            )

    def _own_settings(self) -> tuple[str, ...]:
        """Return the flags of a server that is the demo's own: the user's may have TLS, a key, or another address."""
        path = self._log("runtime.toml")
        path.write_text("# The demo's model server has no settings but the defaults.\n", encoding="utf-8")
        return "--config", str(path.resolve())

    def _log(self, name: str) -> Path:
        directory = self._options.out / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / name


def _model() -> Path:
    model = shipped_model()
    if model is None:
        raise MissingExtraError(
            "the model that ships is not in this installation",
            mend="run from a checkout, or install the wheel",
        )
    return model


def _row(load: LoadResult) -> Sequence[str]:
    summary = load.summary
    found = summary.metrics

    def number(tag: str, statistic: str) -> str:
        value = getattr(found[tag], statistic) if tag in found else None
        return "–" if value is None else str(value) if isinstance(value, str) else f"{value:.1f}"

    return (
        load.arrival,
        str(summary.counts.measured),
        number("request_throughput", "mean"),
        number("ttft", "p50"),
        number("ttft", "p99"),
        number("tpot", "p50"),
        number("tpot", "p99"),
        number("output_throughput", "mean"),
        summary.verdict.trust,
    )

"""What ``GET /metrics`` tells, in Prometheus' text format.

Counting is cheap enough to be done for every token: a bisection and an addition. Everything else is read from the
engine's facade when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tokenweir.core.clock import Clock
from tokenweir.core.events import Usage
from tokenweir.core.requests import Json
from tokenweir.runtime.bridge.messages import Stepped
from tokenweir.telemetry import genai
from tokenweir.telemetry.bins import Bins

PREFIX: Final = "weir_runtime_"
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

Outcome: TypeAlias = Literal["completed", "refused", "failed", "gone"]
"""How a request ended: whole, refused before a token, failed after one, or its client went away."""

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
_LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAP: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meter:
    """Measures one request. ``outcome`` is what it will be counted as; ``engine_id`` the engine's name for it.

    ``prompt`` and ``answer`` are set only where the log shall tell them.
    """

    __slots__ = (
        "_clock",
        "_first_ns",
        "_last_ns",
        "_metrics",
        "_model",
        "_start_ns",
        "answer",
        "engine_id",
        "outcome",
        "prompt",
        "usage",
    )

    def __init__(self, metrics: Metrics, clock: Clock, model: str) -> None:
        self._metrics = metrics
        self._clock = clock
        self._model = model
        self._start_ns = clock.monotonic_ns()
        self._first_ns = 0
        self._last_ns = 0
        self.usage: Usage | None = None
        self.engine_id = ""
        self.prompt: Json = None
        self.answer: dict[int, str] | None = None
        self.outcome: Outcome = "failed"

    @property
    def began(self) -> bool:
        """Whether a token came."""
        return self._first_ns != 0

    @property
    def ttft_ns(self) -> int | None:
        """Time to the first token, from when the request was read."""
        return self._first_ns - self._start_ns if self._first_ns else None

    @property
    def e2el_ns(self) -> int:
        """Time since the request was read."""
        return self._clock.monotonic_ns() - self._start_ns

    def token(self, count: int | None) -> None:
        """Note that an increment of ``count`` tokens came; gaps are spread over the tokens of an increment."""
        now = self._clock.monotonic_ns()
        last = self._last_ns
        self._last_ns = now
        if last:
            tokens = count or 1
            self._metrics.itl.add((now - last) / tokens / _NS_PER_S, tokens)
        else:
            self._first_ns = now
            self._metrics.ttft.add((now - self._start_ns) / _NS_PER_S)

    def facts(self) -> dict[str, object]:
        """Return what the log says of the request, under OpenTelemetry's names where it has one."""
        told: dict[str, object] = {genai.REQUEST_MODEL: self._model, "outcome": self.outcome}
        if self.engine_id:
            told["engine_request_id"] = self.engine_id
        if self.ttft_ns is not None:
            told["ttft_ms"] = round(self.ttft_ns / _NS_PER_MS, 3)
        if self.usage is not None:
            told[genai.INPUT_TOKENS] = self.usage.input_tokens
            told[genai.OUTPUT_TOKENS] = self.usage.output_tokens
        if self.answer is not None:
            told |= {"prompt": self.prompt, "answer": list(self.answer.values())}
        return told

    def done(self, usage: Usage) -> None:
        """Note that the answer is whole."""
        self.usage = usage
        self.outcome = "completed"
        self._metrics.e2el.add(self.e2el_ns / _NS_PER_S)
        counted = self._metrics.tokens
        for kind, tokens in (
            ("prompt", usage.input_tokens),
            ("cached", usage.cached_tokens),
            ("output", usage.output_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens:
                counted[self._model, kind] += tokens


class Metrics(Collector):
    """Counts requests, tokens and times; ``more`` gives what is read when it is asked for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.more: Callable[[], Iterable[Metric]] = tuple
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.ttft, self.itl, self.e2el = Bins(_LATENCY), Bins(_GAP), Bins(_LATENCY)
        self.step, self.batch = Bins(_GAP), Bins(_BATCH)
        self.drafts: Counter[tuple[str, str]] = Counter()
        self.prefix_hits: Counter[str] = Counter()
        self.prefix_bytes: dict[str, int] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    @contextmanager
    def request(self, route: str, model: str) -> Generator[Meter]:
        """Measure a request for a model that exists; what it raises decides how it is counted."""
        meter = Meter(self, self._clock, model)
        try:
            yield meter
        except BaseException:
            meter.outcome = "failed" if meter.began else "refused"
            raise
        finally:
            self.requests[route, model, meter.outcome] += 1

    def untold(self, route: str) -> None:
        """Count a request that was refused before it got as far as a model."""
        self.requests[route, "", "refused"] += 1

    def stepped(self, step: Stepped) -> None:
        """Count what one step of the device brought."""
        self.step.add(step.step_ns / _NS_PER_S)
        if step.running:
            self.batch.add(step.running)
        for outcome, tokens in (("drafted", step.drafted), ("accepted", step.accepted)):
            if tokens:
                self.drafts[step.model, outcome] += tokens
        if step.prefix_hit_tokens:
            self.prefix_hits[step.model] += step.prefix_hit_tokens
        self.prefix_bytes[step.model] = step.prefix_bytes

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        requests = CounterMetricFamily(
            PREFIX + "requests", "Requests by route, model and outcome.", labels=("route", "model", "outcome")
        )
        for labels, count in self.requests.items():
            requests.add_metric(labels, count)
        yield requests
        tokens = CounterMetricFamily(
            PREFIX + "tokens", "Tokens of completed requests by model and kind.", labels=("model", "kind")
        )
        for labels, count in self.tokens.items():
            tokens.add_metric(labels, count)
        yield tokens
        for name, bins, what in (
            ("ttft_seconds", self.ttft, "Time to the first token, from when the request was read."),
            (
                "itl_seconds",
                self.itl,
                "Time between tokens of one request, as they were handed to the client.",
            ),
            ("e2el_seconds", self.e2el, "Time of a completed request."),
            ("step_seconds", self.step, "Time that one step took on the device."),
            ("batch_sequences", self.batch, "Sequences decoded in one step."),
        ):
            buckets, total = bins.buckets()
            family = HistogramMetricFamily(PREFIX + name, what)
            family.add_metric((), buckets, total)
            yield family
        drafts = CounterMetricFamily(
            PREFIX + "draft_tokens",
            "Tokens that draft models proposed and that were accepted.",
            labels=("model", "outcome"),
        )
        for labels, count in self.drafts.items():
            drafts.add_metric(labels, count)
        yield drafts
        hits = CounterMetricFamily(
            PREFIX + "prefix_hit_tokens", "Prompt tokens found in the prefix cache.", labels=("model",)
        )
        for model, count in self.prefix_hits.items():
            hits.add_metric((model,), count)
        yield hits
        yield from self.more()

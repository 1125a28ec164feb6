"""The Prometheus page, under SGLang's metric names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tokenweir.sim.truth import Histogram

if TYPE_CHECKING:
    from tokenweir.sim.engine import Engine

_TTFT_BOUNDS_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_ITL_BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_NS_PER_S: Final = 1e9


def exposition(engine: Engine) -> bytes:
    """Return the page for ``GET /metrics``."""
    return ("\n".join(_lines(engine)) + "\n").encode()


def _lines(engine: Engine) -> Iterator[str]:
    truth, batch = engine.truth, engine.batch
    model = engine.options.model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    label = f'{{model_name="{model}"}}'
    usage = batch.used_tokens / batch.kv_tokens if batch.kv_tokens else 0.0
    gauges = (
        ("num_running_reqs", "Requests running.", batch.running),
        ("num_queue_reqs", "Requests waiting for a place in the batch.", len(batch.waiting)),
        ("num_used_tokens", "Tokens of KV cache reserved.", batch.used_tokens),
        ("max_total_num_tokens", "Tokens of KV cache there are; 0 is no limit.", batch.kv_tokens),
        ("token_usage", "Share of the KV cache reserved.", usage),
    )
    counters = (
        ("num_requests_total", "Requests completed.", truth.completed),
        ("num_aborted_requests_total", "Requests whose client left.", truth.aborted),
        ("prompt_tokens_total", "Input tokens of completed requests.", truth.input_tokens),
        ("generation_tokens_total", "Output tokens sent.", truth.output_tokens),
    )
    for kind, rows in (("gauge", gauges), ("counter", counters)):
        for name, text, value in rows:
            yield f"# HELP sglang:{name} {text}"
            yield f"# TYPE sglang:{name} {kind}"
            yield f"sglang:{name}{label} {float(value)}"
    inner = label[1:-1]
    yield from _histogram(
        "time_to_first_token_seconds", "Time to first token.", truth.ttft, _TTFT_BOUNDS_S, inner
    )
    yield from _histogram(
        "inter_token_latency_seconds", "Gap between tokens.", truth.gaps, _ITL_BOUNDS_S, inner
    )


def _histogram(
    name: str, text: str, histogram: Histogram, bounds_s: tuple[float, ...], labels: str
) -> Iterator[str]:
    yield f"# HELP sglang:{name} {text}"
    yield f"# TYPE sglang:{name} histogram"
    *buckets, n = histogram.cumulative(bounds_s)
    for bound, count in zip(bounds_s, buckets, strict=True):
        yield f'sglang:{name}_bucket{{le="{bound}",{labels}}} {float(count)}'
    yield f'sglang:{name}_bucket{{le="+Inf",{labels}}} {float(n)}'
    yield f"sglang:{name}_sum{{{labels}}} {histogram.total_ns / _NS_PER_S}"
    yield f"sglang:{name}_count{{{labels}}} {float(n)}"

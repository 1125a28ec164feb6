"""The columns of the run directory's Parquet tables; ``docs/formats.md`` explains each.

Times are nanoseconds since the run's start on the monotonic clock, the same start for all workers.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

STATUSES: Final = ("completed", "failed", "cancelled")
PHASES: Final = ("warmup", "measured", "cooldown", "recompiled")

REQUESTS: Final = pa.schema(
    [
        pa.field("request", pa.int64(), nullable=False),
        pa.field("load", pa.int16(), nullable=False),
        pa.field("worker", pa.int16(), nullable=False),
        pa.field("connection", pa.int32(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("scheduled_ns", pa.int64(), nullable=False),
        pa.field("sent_ns", pa.int64()),
        pa.field("first_byte_ns", pa.int64()),
        pa.field("first_token_ns", pa.int64()),
        pa.field("last_token_ns", pa.int64()),
        pa.field("end_ns", pa.int64()),
        pa.field("phase", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("error", pa.dictionary(pa.int16(), pa.string())),
        pa.field("http_status", pa.int16()),
        pa.field("finish_reason", pa.dictionary(pa.int16(), pa.string())),
        pa.field("input_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("reasoning_tokens", pa.int32()),
        pa.field("token_source", pa.dictionary(pa.int8(), pa.string())),
        pa.field("chunks", pa.int32(), nullable=False),
        pa.field("reads", pa.int32(), nullable=False),
        pa.field("multi_event_reads", pa.int32(), nullable=False),
        pa.field("gaps_excluded", pa.int32(), nullable=False),
        pa.field("icl_mean_ns", pa.int64()),
        pa.field("icl_max_ns", pa.int64()),
        pa.field("recompiles", pa.int32()),
        pa.field("server_queue_ns", pa.int64()),
        pa.field("server_ttft_ns", pa.int64()),
        pa.field("server_e2el_ns", pa.int64()),
        pa.field("true_first_ns", pa.int64()),
        pa.field("answer_hash", pa.uint64()),
    ]
)
"""One row per request that was sent or should have been."""

CHUNKS: Final = pa.schema(
    [
        pa.field("request", pa.int64(), nullable=False),
        pa.field("load", pa.int16(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("received_ns", pa.int64(), nullable=False),
        pa.field("tokens", pa.int16()),
        pa.field("shared_read", pa.bool_(), nullable=False),
        pa.field("true_sent_ns", pa.int64()),
    ]
)
"""One row per stream chunk that held text, reasoning or a tool call, in order within its request."""

SERIES: Final = pa.schema(
    [
        pa.field("load", pa.int16(), nullable=False),
        pa.field("second", pa.int32(), nullable=False),
        pa.field("metric", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("bin", pa.int16(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)
"""Counts per second of the run and log-latency bin, for ttft, itl, e2el; and per-second totals (see the docs)."""

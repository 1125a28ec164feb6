"""The finishing process's own tables: fixed records appended to files, read back as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

_BLOCK: Final = 1 << 17
NULL: Final = -(1 << 63)
"""Stands for "unknown" in int64 columns."""

STATUSES: Final = ("completed", "failed", "cancelled")
SOURCES: Final = ("server", "tokenizer", "estimate")

ROW_FIELDS: Final = (
    "request",
    "load",
    "worker",
    "connection",
    "sample",
    "repeat",
    "scheduled_ns",
    "sent_ns",
    "first_byte_ns",
    "first_token_ns",
    "last_token_ns",
    "end_ns",
    "status",
    "error",
    "http_status",
    "finish_reason",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "token_source",
    "chunks",
    "reads",
    "multi_event_reads",
    "gaps_excluded",
    "icl_sum_ns",
    "icl_count",
    "icl_max_ns",
    "recompiles",
    "server_queue_ns",
    "server_ttft_ns",
    "server_e2el_ns",
    "true_first_ns",
    "answer_hash",
    "counted_tokens",
    "over_ns",
)
"""One int64 each. ``status``, ``error``, ``finish_reason`` and ``token_source`` are indexes of name lists;
``counted_tokens`` is the sum of the chunks' own counts, or ``NULL`` where chunks do not say; ``over_ns`` is when the
capture was done with the request: its last byte, or when it was given up."""

CHUNK: Final = np.dtype(
    [
        ("request", "<i8"),
        ("received_ns", "<i8"),
        ("gap_ns", "<i8"),
        ("index", "<i4"),
        ("tokens", "<i2"),
        ("shared", "?"),
        ("excluded", "?"),
    ]
)
"""A stream chunk. ``gap_ns`` −1: the first of its request; ``tokens`` −1: not said; ``excluded``: the gap touches
a read that held several chunks."""

TRUE_CHUNK: Final = np.dtype([*CHUNK.descr, ("true_sent_ns", "<i8"), ("true_gap_ns", "<i8")])
"""A chunk of the simulator's, with its true send time (``NULL`` when a chunk carried none)."""


def chunk_type(*, true_times: bool) -> np.dtype[np.void]:
    """Return the record type of the chunk spool."""
    return TRUE_CHUNK if true_times else CHUNK


def read_rows(path: Path) -> npt.NDArray[np.int64]:
    """Map a row spool: one line per request, a column per ``ROW_FIELDS``.

    A last line that a full disk cut short is left out.
    """
    lines = path.stat().st_size // (8 * len(ROW_FIELDS)) if path.exists() else 0
    if not lines:
        return np.zeros((0, len(ROW_FIELDS)), np.int64)
    return np.memmap(path, np.int64, "r", shape=(lines, len(ROW_FIELDS)))


def chunk_blocks(path: Path, kind: np.dtype[np.void]) -> Iterator[npt.NDArray[np.void]]:
    """Yield a chunk spool in blocks: read, not mapped, so that no more than a block counts as this process's memory."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while len(block := np.fromfile(file, kind, _BLOCK)):
            yield block


def read_chunks(path: Path, kind: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """Map a chunk spool; a last chunk that a full disk cut short is left out."""
    chunks = path.stat().st_size // kind.itemsize if path.exists() else 0
    if not chunks:
        return np.zeros(0, kind)
    return np.memmap(path, kind, "r", shape=(chunks,))

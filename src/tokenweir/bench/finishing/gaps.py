"""One pass over the chunk records: pooled gaps, tokens per second, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokenweir.bench.finishing.spool import NULL, chunk_blocks
from tokenweir.bench.records.series import Series
from tokenweir.core.stats.pool import Pool

Ints = npt.NDArray[np.int64]


class RequestFacts:
    """What the pass needs to know of each request; arrays indexed by request number less ``first``.

    ``measured``: in the measured phase and completed. ``single``: each of its chunks holds one token.
    ``tokens_per_chunk``: output tokens over chunks, for engines that do not count per chunk.
    """

    __slots__ = ("first", "measured", "single", "tokens_per_chunk")

    def __init__(
        self, requests: Ints, measured: npt.NDArray[np.bool_], output: Ints, chunks: Ints, counted: Ints
    ) -> None:
        self.first = int(requests[0]) if len(requests) else 0
        size = int(requests[-1]) - self.first + 1 if len(requests) else 0
        at = requests - self.first
        self.measured = np.zeros(size, np.bool_)
        self.measured[at] = measured
        known = (output != NULL) & (chunks > 0)
        self.tokens_per_chunk = np.ones(size)
        self.tokens_per_chunk[at] = np.where(known, output / np.maximum(chunks, 1), 1.0)
        self.single = np.zeros(size, np.bool_)
        # The end-of-sequence token is in the usage, and in no chunk of some engines.
        self.single[at] = known & (counted == NULL) & ((output == chunks) | (output == chunks + 1))


class Gaps:
    """The pooled metrics of one load point, and how much of the stream went into them; values spill to ``folder``."""

    def __init__(self, window: tuple[int, int], folder: Path) -> None:
        self.itl = Pool(folder / "itl.pool")
        self.icl = Pool(folder / "icl.pool")
        self.itl_error = Pool(folder / "itl-error.pool")
        self.series = Series()
        self.gaps = 0
        self.excluded = 0
        self.unresolved = 0
        self._tokens = 0.0
        self._window = window

    def close(self) -> None:
        """Complete the pools' files; their percentiles can be taken from here on."""
        for pool in (self.itl, self.icl, self.itl_error):
            pool.save()

    @property
    def output_tokens_in_window(self) -> int:
        """Output tokens received inside the measured window."""
        return round(self._tokens)

    def add(self, folder: Path, kind: np.dtype[np.void], facts: RequestFacts) -> None:
        """Take in one worker's chunk records."""
        for block in chunk_blocks(folder / "chunks.bin", kind):
            self._add(block, facts)

    def add_whole_answers(self, end_ns: Ints, output: Ints) -> None:
        """Count the tokens of answers that were not streamed: all came with the last byte."""
        known = (end_ns != NULL) & (output != NULL)
        start, end = self._window
        inside = known & (end_ns >= start) & (end_ns <= end)
        self._tokens += float(output[inside].sum())
        self.series.add_totals("output_tokens", end_ns[known], output[known])

    def _add(self, block: npt.NDArray[np.void], facts: RequestFacts) -> None:
        request = block["request"] - facts.first
        # A worker that died leaves chunks of requests that have no row.
        rowed = (request >= 0) & (request < len(facts.measured))
        block, request = block[rowed], request[rowed]
        received, counts = block["received_ns"], block["tokens"].astype(np.int64)
        said = counts >= 0
        tokens = np.where(said, counts, facts.tokens_per_chunk[request])
        start, end = self._window
        self._tokens += float(tokens[(received >= start) & (received <= end)].sum())
        self.series.add_totals("output_tokens", received, np.rint(tokens).astype(np.int64))
        measured = facts.measured[request] & (block["gap_ns"] >= 0)
        self.gaps += int(np.count_nonzero(measured))
        excluded = measured & block["excluded"]
        self.excluded += int(np.count_nonzero(excluded))
        usable = measured & ~excluded
        self.icl.add(block["gap_ns"][usable])
        single = usable & np.where(said, counts == 1, facts.single[request])
        self.unresolved += int(np.count_nonzero(usable & ~single))
        gaps = block["gap_ns"][single]
        self.itl.add(gaps)
        self.series.add_latencies("itl", received[single], gaps)
        if "true_gap_ns" in (block.dtype.names or ()):
            true = block["true_gap_ns"][single]
            known = true != NULL
            self.itl_error.add(np.abs(gaps[known] - true[known]))


def count_chunks(folders: Sequence[Path], kind: np.dtype[np.void]) -> int:
    """Return how many chunk records the workers left."""
    return (
        sum(path.stat().st_size for path in (folder / "chunks.bin" for folder in folders) if path.exists())
        // kind.itemsize
    )

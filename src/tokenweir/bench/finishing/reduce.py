"""The finishing pass: segments in, rows and chunk records out. Its memory is that of the open exchanges.

Reads are grouped by request and each group is decoded at once; times, gaps and exclusions are then worked out for
the whole segment by :mod:`tokenweir.bench.finishing.timing`.
"""

from __future__ import annotations

from array import array
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from tokenweir.bench.engine.plan import FinishPlan
from tokenweir.bench.engine.segment import End
from tokenweir.bench.finishing import clocks
from tokenweir.bench.finishing.exchange import Exchange, Heads
from tokenweir.bench.finishing.outcome import Outcome, judge
from tokenweir.bench.finishing.segments import Captured, Ints
from tokenweir.bench.finishing.spool import NULL, SOURCES, STATUSES, chunk_type
from tokenweir.bench.finishing.timing import Observe, Timing, Tokens
from tokenweir.core.events import Token
from tokenweir.core.requests import GenerateRequest
from tokenweir.ports.backend import Codec
from tokenweir.ports.tokenizer import Tokenizer

_IO_RECORDS: Final = 2048
_STOPPED: Final = frozenset({End.CANCELLED, End.UNSENT})
_ANSWERED: Final = frozenset({End.WHOLE, End.EOF})


class Reducer:
    """Turns one worker's segments into ``rows.i64`` and ``chunks.bin`` in the plan's folder.

    ``errors`` and ``reasons`` are the names behind the rows' indexes; ``messages`` holds the first message of each
    kind of error.
    """

    def __init__(
        self,
        plan: FinishPlan,
        *,
        codec: Codec,
        request: GenerateRequest,
        tokenizer: Tokenizer | None = None,
        observe: Observe | None = None,
    ) -> None:
        folder = Path(plan.folder)
        kind = chunk_type(true_times=plan.true_times)
        self._plan = plan
        self._codec = codec
        self._request = request
        self._tokenizer = tokenizer
        self._timing = Timing(kind, plan.start_ns, observe)
        self._heads = Heads()
        self._table: Ints = np.asarray(np.load(plan.requests, mmap_mode="r", allow_pickle=False))
        self._open: dict[int, Exchange] = {}
        self._rows_file: BinaryIO = (folder / "rows.i64").open("wb")
        self._chunks_file: BinaryIO = (folder / "chunks.bin").open("wb")
        self._clocks: Ints = np.zeros((0, 2), np.int64)
        self.clock_steps = 0
        self.errors: list[str] = []
        self.reasons: list[str] = []
        self.messages: dict[str, str] = {}

    def feed(self, captured: Captured) -> None:
        """Take in the next segment, in order."""
        known = np.concatenate([self._clocks[-1:], captured.clocks])
        self.clock_steps += clocks.steps(known)
        self._clocks = known
        for ordinal, connection, scheduled, sent in captured.sends.tolist():
            exchange = self._open.get(ordinal)
            if exchange is None:
                self._open[ordinal] = Exchange(scheduled, sent, connection)
            else:
                exchange.restart(sent, connection)
        if len(captured.requests):
            self._read(captured)
        rows = array("q")
        lines: list[list[int]] = self._table[captured.ends[:, 0] % len(self._table)].tolist()
        for (ordinal, how, detail, at), line in zip(captured.ends.tolist(), lines, strict=True):
            exchange = self._open.pop(ordinal, None)
            if exchange is not None:
                rows.extend(self._row(ordinal // len(self._table), line, exchange, (how, detail, at)))
        self._rows_file.write(rows.tobytes())

    def close(self) -> None:
        """Finish the files. Exchanges that the capture never ended (it died) are left out."""
        self._rows_file.close()
        self._chunks_file.close()

    def _read(self, captured: Captured) -> None:
        order = np.argsort(captured.requests, kind="stable")
        ordinals = captured.requests[order]
        times = (clocks.to_monotonic(captured.stamps_ns, self._clocks) - self._plan.start_ns)[order]
        starts: list[int] = np.concatenate([[0], captured.offsets[:-1]])[order].tolist()
        ends: list[int] = captured.offsets[order].tolist()
        borders: list[int] = [0, *(np.flatnonzero(np.diff(ordinals)) + 1).tolist(), len(ordinals)]
        marks: list[int] = []
        tokens = Tokens()
        total = 0
        for first, last in pairwise(borders):
            ordinal = int(ordinals[first])
            exchange = self._open.get(ordinal)
            if exchange is None:
                marks.extend([total] * (last - first))
                continue
            if exchange.first_byte_ns == NULL:
                exchange.first_byte_ns = int(times[first])
            exchange.reads += last - first
            exchange.last_read_ns = int(times[last - 1])
            reads = [
                captured.raw[start:end]
                for start, end in zip(starts[first:last], ends[first:last], strict=True)
            ]
            total = self._decode(ordinal, exchange, reads, total, tokens, marks)
        if tokens.ends:
            records = self._timing.records(tokens, times, np.array(marks, np.int64))
            for start in range(0, len(records), _IO_RECORDS):
                self._chunks_file.write(records[start : start + _IO_RECORDS].tobytes())
                self._chunks_file.flush()

    def _decode(
        self,
        ordinal: int,
        exchange: Exchange,
        reads: list[bytes],
        total: int,
        tokens: Tokens,
        marks: list[int],
    ) -> int:
        """Decode one request's reads.

        ``total`` counts the body bytes of the segment; it is returned grown by this request's, and ``marks`` gets
        what it was after each read.
        """
        place = 0
        while not exchange.headed and place < len(reads):
            reads[place] = exchange.take_head(reads[place], self._heads)
            place += 1
            if not exchange.headed:
                reads[place - 1] = b""
        if exchange.headed:
            # The read that ended the head may hold the beginning of the body, so it is unframed too.
            place = max(0, place - 1)
            bodies = [*reads[:place], *exchange.unframe(reads[place:])]
        else:
            bodies = reads
        for body in bodies:
            total += len(body)
            marks.append(total)
        whole = b"".join(bodies)
        if exchange.status != 200:  # noqa: PLR2004 - HTTPStatus is an enum, and dear here
            exchange.keep_error(whole)
            exchange.body_bytes += len(whole)
            return total
        decoder = exchange.decoder
        if decoder is None:
            # Made even for an empty body, so that its end is judged.
            exchange.decoder = decoder = self._codec.decoder(self._request)
        if not whole:
            return total
        shift = total - len(whole) - exchange.body_bytes
        texts: list[str] = []
        for end, event in decoder.feed(whole):
            if type(event) is Token:
                tokens.ends.append(end + shift)
                tokens.counts.append(-1 if event.count is None else event.count)
                tokens.sent.append(NULL if event.sent_ns is None else event.sent_ns)
                texts.append(event.text or event.reasoning)
            else:
                exchange.note(event)
        if texts:
            tokens.owners.append((self._number(ordinal), exchange, len(texts)))
            exchange.add_text(texts)
        exchange.body_bytes += len(whole)
        return total

    def _number(self, ordinal: int) -> int:
        cycle, row = divmod(ordinal, len(self._table))
        return int(self._table[row, 0]) + cycle * self._plan.cycle_requests

    def _row(
        self, cycle: int, line: list[int], exchange: Exchange, end: tuple[int, int, int]
    ) -> tuple[int, ...]:
        """Return the values of ``ROW_FIELDS`` for an exchange that ended (how, with which errno, when)."""
        plan = self._plan
        how, detail, at = end
        number, _, sample, repeat, input_tokens = line
        outcome = judge(exchange, how, detail, self._codec)
        status = "cancelled" if how in _STOPPED else "failed" if outcome.error else "completed"
        streamed = self._request.stream
        usage = exchange.usage
        output, source = self._output_tokens(exchange)
        if usage is not None and usage.input_tokens is not None:
            input_tokens = usage.input_tokens
        timings = usage.timings_ns if usage is not None else {}
        return (
            number + cycle * plan.cycle_requests,
            plan.load,
            plan.worker,
            exchange.connection,
            sample,
            repeat + cycle * plan.cycle_repeats,
            exchange.scheduled_ns - plan.start_ns,
            NULL if exchange.sent_ns < 0 else exchange.sent_ns - plan.start_ns,
            exchange.first_byte_ns,
            exchange.first_token_ns if streamed else NULL,
            exchange.last_token_ns if streamed else NULL,
            exchange.last_read_ns if how in _ANSWERED else NULL,
            STATUSES.index(status),
            self._error(outcome),
            exchange.status,
            _index(self.reasons, exchange.finish_reason),
            NULL if input_tokens < 0 else input_tokens,
            output,
            _known(usage and usage.cached_tokens),
            _known(usage and usage.reasoning_tokens),
            source,
            exchange.chunks if streamed else 0,
            exchange.reads,
            exchange.multi_event_reads,
            exchange.gaps_excluded,
            exchange.gap_sum,
            exchange.gap_count,
            exchange.gap_max,
            _known(usage and usage.recompiles),
            timings.get("queue_time", NULL),
            timings.get("ttft", NULL),
            timings.get("e2el", NULL),
            exchange.true_first_ns if streamed else NULL,
            exchange.answer_hash(),
            exchange.counted if exchange.chunks else NULL,
            at - plan.start_ns,
        )

    def _error(self, outcome: Outcome) -> int:
        if outcome.error and outcome.error not in self.messages:
            self.messages[outcome.error] = outcome.message
        return _index(self.errors, outcome.error)

    def _output_tokens(self, exchange: Exchange) -> tuple[int, int]:
        """Return the output tokens and who counted them, as an index of ``SOURCES``."""
        usage = exchange.usage
        if usage is not None and usage.output_tokens is not None:
            return usage.output_tokens, SOURCES.index(usage.source)
        if self._tokenizer is not None and exchange.text:
            return len(self._tokenizer.encode(exchange.text)), SOURCES.index("tokenizer")
        if exchange.chunks:
            return exchange.chunks, SOURCES.index("estimate")
        return NULL, NULL


def _known(value: int | None) -> int:
    return NULL if value is None else value


def _index(names: list[str], name: str) -> int:
    if not name:
        return NULL
    if name not in names:
        names.append(name)
    return names.index(name)

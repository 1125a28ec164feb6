"""The finishing pass: segments in, rows and chunk records out. Its memory is that of the open exchanges.

Reads are grouped by request and each group is decoded at once; times, gaps and exclusions are then worked out for
the whole segment in NumPy. A chunk's time is that of the read that completed it.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from tokenweir.bench.engine.plan import FinishPlan
from tokenweir.bench.engine.segment import End
from tokenweir.bench.finishing import clocks
from tokenweir.bench.finishing.exchange import Exchange, Outcome
from tokenweir.bench.finishing.segments import Captured, Ints
from tokenweir.bench.finishing.spool import NULL, SOURCES, STATUSES, chunk_type
from tokenweir.core.events import Failed, Token
from tokenweir.core.requests import GenerateRequest
from tokenweir.ports.backend import Codec
from tokenweir.ports.tokenizer import Tokenizer

_MESSAGES: Final = 20
"""Distinct error messages kept per worker."""


class Tokens:
    """The tokens of one segment as they are decoded: parallel columns, offsets counted over all its bodies."""

    __slots__ = ("counts", "ends", "exchanges", "sent")

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.counts: list[int] = []
        self.sent: list[int] = []
        self.exchanges: list[tuple[int, Exchange, int]] = []
        """(ordinal, exchange, number of its tokens), in order."""


class Reducer:
    """Turns one worker's segments into ``rows.i64`` and ``chunks.bin`` in the plan's folder."""

    def __init__(
        self,
        plan: FinishPlan,
        *,
        codec: Codec,
        request: GenerateRequest,
        tokenizer: Tokenizer | None = None,
        observe: Callable[[Ints, Ints], None] | None = None,
    ) -> None:
        folder = Path(plan.folder)
        self._plan = plan
        self._codec = codec
        self._request = request
        self._tokenizer = tokenizer
        self._observe = observe
        self._table = np.load(plan.requests, mmap_mode="r", allow_pickle=False)
        self._open: dict[int, Exchange] = {}
        self._rows_file: BinaryIO = (folder / "rows.i64").open("wb")
        self._chunks_file: BinaryIO = (folder / "chunks.bin").open("wb")
        self._chunk_type = chunk_type(true_times=plan.true_times)
        self._clocks = np.zeros((0, 2), np.int64)
        self.clock_steps = 0
        self.errors: list[str] = []
        self.reasons: list[str] = []
        self.messages: dict[str, str] = {}

    def feed(self, captured: Captured) -> None:
        """Take in the next segment, in order."""
        self._set_clocks(captured.clocks)
        for ordinal, connection, scheduled, sent in captured.sends.tolist():
            exchange = self._open.get(ordinal)
            if exchange is None:
                self._open[ordinal] = Exchange(scheduled, sent, connection)
            else:
                exchange.restart(sent, connection)
        if len(captured.requests):
            self._read(captured)
        rows = array("q")
        for ordinal, how, detail, _ in captured.ends.tolist():
            exchange = self._open.pop(ordinal, None)
            if exchange is not None:
                rows.extend(self._row(ordinal, exchange, End(how), detail))
        self._rows_file.write(rows.tobytes())

    def close(self) -> None:
        """Finish the files. Exchanges that the capture never ended (it died) are left out."""
        self._rows_file.close()
        self._chunks_file.close()

    def _set_clocks(self, fresh: Ints) -> None:
        known = np.concatenate([self._clocks[-1:], fresh])
        self.clock_steps += clocks.steps(known)
        self._clocks = known

    def _read(self, captured: Captured) -> None:
        received = clocks.to_monotonic(captured.stamps_ns, self._clocks) - self._plan.start_ns
        order = np.argsort(captured.requests, kind="stable")
        ordinals = captured.requests[order]
        borders = np.flatnonzero(np.diff(ordinals)) + 1
        starts = np.concatenate([[0], captured.offsets[:-1]])[order].tolist()
        ends = captured.offsets[order].tolist()
        firsts = [0, *borders.tolist(), len(ordinals)]
        times = received[order]
        body_ends = np.zeros(len(ordinals), np.int64)
        tokens = Tokens()
        total = 0
        for group in range(len(firsts) - 1):
            first, last = firsts[group], firsts[group + 1]
            ordinal = int(ordinals[first])
            exchange = self._open.get(ordinal)
            if exchange is None:
                body_ends[first:last] = total
                continue
            if exchange.first_byte_ns == NULL:
                exchange.first_byte_ns = int(times[first])
            exchange.reads += last - first
            exchange.last_read_ns = int(times[last - 1])
            total = self._decode(
                ordinal,
                exchange,
                [captured.raw[starts[k] : ends[k]] for k in range(first, last)],
                total,
                tokens,
                body_ends[first:last],
            )
        if tokens.ends:
            self._time(tokens, times, body_ends)

    def _decode(
        self,
        ordinal: int,
        exchange: Exchange,
        reads: list[bytes],
        total: int,
        tokens: Tokens,
        body_ends: Ints,
    ) -> int:
        """Decode one request's reads; return the running total of body bytes."""
        fresh = None if exchange.decoder is not None else self._codec.decoder(self._request)
        bodies: list[bytes] = []
        at = total
        marks: list[int] = []
        for read in reads:
            body = exchange.take(read, exchange.decoder or fresh)  # type: ignore[arg-type]
            bodies.append(body)
            at += len(body)
            marks.append(at)
        body_ends[:] = marks
        decoder = exchange.decoder
        whole = b"".join(bodies)
        if decoder is None:
            exchange.keep_error(whole)
        elif whole:
            shift = total - exchange.body_bytes
            count = 0
            for end, event in decoder.feed(whole):
                if type(event) is Token:
                    count += 1
                    tokens.ends.append(end + shift)
                    tokens.counts.append(-1 if event.count is None else event.count)
                    tokens.sent.append(NULL if event.sent_ns is None else event.sent_ns)
                    exchange.add_text(event)
                else:
                    exchange.note(event)
            if count:
                tokens.exchanges.append((ordinal, exchange, count))
        exchange.body_bytes += len(whole)
        return at

    def _time(self, tokens: Tokens, times: Ints, body_ends: Ints) -> None:
        """Give each token the time of the read that completed it, and write the chunk records."""
        read_of = np.searchsorted(body_ends, np.array(tokens.ends, np.int64), side="left")
        at = times[read_of]
        held = np.bincount(read_of, minlength=len(times))
        shared = held[read_of] > 1
        counts = np.array([count for _, _, count in tokens.exchanges], np.int64)
        firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        owners = [exchange for _, exchange, _ in tokens.exchanges]
        gaps = np.diff(at, prepend=0)
        previous_at = np.array([owner.last_token_ns for owner in owners], np.int64)
        new = previous_at == NULL
        gaps[firsts] = np.where(new, -1, at[firsts] - np.where(new, 0, previous_at))
        before_shared = np.concatenate([[False], shared[:-1]])
        before_shared[firsts] = [owner.last_shared for owner in owners]
        excluded = (shared | before_shared) & (gaps >= 0)
        records = np.zeros(len(at), self._chunk_type)
        records["received_ns"] = at
        records["gap_ns"] = gaps
        records["tokens"] = np.minimum(np.array(tokens.counts, np.int64), 32_767)
        records["shared"] = shared
        records["excluded"] = excluded
        numbers = np.array([self._number(ordinal) for ordinal, _, _ in tokens.exchanges], np.int64)
        records["request"] = np.repeat(numbers, counts)
        begun = np.array([owner.chunks for owner in owners], np.int64)
        records["index"] = np.arange(len(at)) - np.repeat(firsts - begun, counts)
        if self._plan.true_times:
            self._true_times(records, np.array(tokens.sent, np.int64), firsts, owners)
        self._chunks_file.write(records.tobytes())
        self._settle(tokens, records, firsts, np.flatnonzero(held > 1), read_of)

    def _true_times(self, records: Ints, sent: Ints, firsts: Ints, owners: list[Exchange]) -> None:
        known = sent != NULL
        true = np.where(known, sent - self._plan.start_ns, NULL)
        before = np.concatenate([[NULL], true[:-1]])
        before[firsts] = [owner.last_true_ns for owner in owners]
        records["true_sent_ns"] = true
        both = known & (before != NULL)
        records["true_gap_ns"] = np.where(both, true - np.where(both, before, 0), NULL)

    def _settle(self, tokens: Tokens, records: Ints, firsts: Ints, multi: Ints, read_of: Ints) -> None:
        """Carry each exchange's totals and its last chunk on to the next segment."""
        gaps = records["gap_ns"]
        usable = (gaps >= 0) & ~records["excluded"]
        used = np.where(usable, gaps, 0)
        sums = np.add.reduceat(used, firsts).tolist()
        most = np.maximum.reduceat(used, firsts).tolist()
        numbers = np.add.reduceat(usable.astype(np.int64), firsts).tolist()
        dropped = np.add.reduceat(records["excluded"].astype(np.int64), firsts).tolist()
        counted = np.add.reduceat(np.array(tokens.counts, np.int64), firsts).tolist()
        # A read belongs to one request, so the reads with several chunks are told apart by their first token.
        opens = np.flatnonzero(np.isin(read_of, multi) & (np.diff(read_of, prepend=-1) != 0))
        several = np.bincount(
            np.searchsorted(firsts, opens, side="right") - 1, minlength=len(firsts)
        ).tolist()
        at, shared = records["received_ns"].tolist(), records["shared"].tolist()
        true = records["true_sent_ns"].tolist() if self._plan.true_times else None
        ttfts: list[int] = []
        for k, (_, exchange, count) in enumerate(tokens.exchanges):
            first = int(firsts[k])
            last = first + count - 1
            if exchange.first_token_ns == NULL:
                exchange.first_token_ns = at[first]
                ttfts.append(at[first] + self._plan.start_ns - exchange.sent_ns)
                exchange.true_first_ns = NULL if true is None else true[first]
            exchange.last_token_ns = at[last]
            exchange.last_true_ns = NULL if true is None else true[last]
            exchange.last_shared = shared[last]
            exchange.chunks += count
            exchange.gap_sum += sums[k]
            exchange.gap_count += numbers[k]
            exchange.gap_max = max(exchange.gap_max, most[k])
            exchange.gaps_excluded += dropped[k]
            exchange.multi_event_reads += several[k]
            exchange.counted += counted[k]
        if self._observe is not None:
            self._observe(np.array(ttfts, np.int64), gaps[usable])

    def _number(self, ordinal: int) -> int:
        cycle, row = divmod(ordinal, len(self._table))
        return int(self._table[row, 0]) + cycle * self._plan.cycle_requests

    def _row(self, ordinal: int, exchange: Exchange, how: End, detail: int) -> tuple[int, ...]:
        """Return the values of ``ROW_FIELDS`` for an ended exchange."""
        plan = self._plan
        cycle, line = divmod(ordinal, len(self._table))
        number, _, sample, repeat, input_tokens = self._table[line].tolist()
        outcome = self._outcome(exchange, how, detail)
        status = (
            "cancelled" if how in {End.CANCELLED, End.UNSENT} else "failed" if outcome.error else "completed"
        )
        if outcome.error and outcome.error not in self.messages and len(self.messages) < _MESSAGES:
            self.messages[outcome.error] = outcome.message
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
            exchange.last_read_ns if how in {End.WHOLE, End.EOF} else NULL,
            STATUSES.index(status),
            _index(self.errors, outcome.error),
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
            exchange.counted if exchange.counted >= exchange.chunks else NULL,
        )

    def _outcome(self, exchange: Exchange, how: End, detail: int) -> Outcome:
        """Judge an exchange: the first thing that went wrong with it, or nothing."""
        match how:
            case End.CANCELLED | End.UNSENT:
                return Outcome("cancelled", "the run was stopped")
            case End.CONNECT:
                return Outcome("unreachable", f"no connection: {os.strerror(detail)}")
            case End.TIMEOUT:
                return Outcome("timeout", "no whole answer within the time limit")
            case End.RESET:
                return Outcome("disconnected", "the server reset the connection")
            case End.BAD_HEAD:
                return Outcome("malformed", "the answer does not begin as HTTP/1")
            case End.WHOLE | End.EOF:
                pass
        if exchange.decoder is not None:
            for _, event in exchange.decoder.end():
                if not isinstance(event, Token):
                    exchange.note(event)
        fault = exchange.framing_fault(closed=how == End.EOF)
        if fault:
            return Outcome("disconnected" if how == End.EOF else "malformed", fault)
        if exchange.status != 200:
            return exchange.refused(self._codec)
        if isinstance(exchange.failure, Failed):
            return Outcome(exchange.failure.kind, exchange.failure.message)
        return Outcome("")

    def _output_tokens(self, exchange: Exchange) -> tuple[int, int]:
        """Return the output tokens and who counted them, as an index of ``SOURCES``."""
        usage = exchange.usage
        if usage is not None and usage.output_tokens is not None:
            return usage.output_tokens, SOURCES.index(usage.source)
        if self._tokenizer is not None and exchange.text:
            return len(self._tokenizer.encode("".join(exchange.text))), SOURCES.index("tokenizer")
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

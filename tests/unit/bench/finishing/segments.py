"""Captured segments made by hand, and what the reducer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.engine.plan import FinishPlan
from tokenweir.bench.engine.segment import End
from tokenweir.bench.finishing.reduce import Reducer
from tokenweir.bench.finishing.segments import Captured
from tokenweir.bench.finishing.spool import NULL, ROW_FIELDS, STATUSES, chunk_type, read_chunks, read_rows
from tokenweir.core.requests import GenerateRequest
from tokenweir.ports.backend import Codec
from tokenweir.ports.fakes import LineBackend
from tokenweir.ports.tokenizer import Tokenizer

START_NS = 5_000_000_000
OFFSET_NS = 1_700_000_000_000_000_000
LINES_REQUEST = GenerateRequest(kind="completion", model="m", prompt="hi")


class Read(NamedTuple):
    """One read of a request's answer; ``at`` counts from the run's start."""

    request: int
    at: int
    data: bytes


class Send(NamedTuple):
    request: int
    scheduled: int
    sent: int
    connection: int = 0


class Finish(NamedTuple):
    request: int
    how: int = End.WHOLE
    at: int = 0
    detail: int = 0


Ints = npt.NDArray[np.int64]


def table(rows: Sequence[tuple[int, ...]], width: int) -> Ints:
    return np.array(rows, np.int64).reshape(-1, width)


def segment(
    reads: Sequence[Read] = (), sends: Sequence[Send] = (), ends: Sequence[Finish] = (), *, upto: int = 10**12
) -> Captured:
    """A segment whose clocks stand still; ``upto`` is when it ended."""
    raw = b"".join(read.data for read in reads)
    return Captured(
        requests=np.array([read.request for read in reads], np.int64),
        offsets=np.cumsum([len(read.data) for read in reads], dtype=np.int64),
        stamps_ns=np.array([START_NS + read.at + OFFSET_NS for read in reads], np.int64),
        sends=table(
            [
                (
                    send.request,
                    send.connection,
                    START_NS + send.scheduled,
                    -1 if send.sent < 0 else START_NS + send.sent,
                )
                for send in sends
            ],
            4,
        ),
        ends=table([(end.request, end.how, end.detail, START_NS + end.at) for end in ends], 4),
        clocks=table([(START_NS, OFFSET_NS), (START_NS + upto, OFFSET_NS)], 2),
        raw=raw,
    )


class Reduced(NamedTuple):
    """What the reducer wrote: rows by request and chunk records by (request, index), and itself."""

    rows: dict[int, dict[str, int | None]]
    chunks: list[dict[str, int]]
    reducer: Reducer

    def status(self, request: int) -> str:
        return STATUSES[self.rows[request]["status"] or 0]

    def error(self, request: int) -> str | None:
        code = self.rows[request]["error"]
        return None if code is None else self.reducer.errors[code]


class Setting(NamedTuple):
    """How the reducer is set up."""

    codec: Codec = LineBackend()
    request: GenerateRequest = LINES_REQUEST
    tokenizer: Tokenizer | None = None
    requests: int = 20
    true_times: bool = False
    input_tokens: int = -1
    cycle_repeats: int = 1


def reduced(folder: Path, segments: Sequence[Captured], setting: Setting | None = None) -> Reduced:
    """Feed segments to a reducer in ``folder`` and read back what it wrote."""
    how = setting or Setting()
    lines = [(number, 0, number % 3, number // 3, how.input_tokens) for number in range(how.requests)]
    np.save(folder / "requests.npy", table(lines, 5))
    reducer = Reducer(
        FinishPlan(
            worker=2,
            load=1,
            folder=str(folder),
            backend=how.codec.kind,
            request=msgspec.json.encode(how.request),
            start_ns=START_NS,
            requests=str(folder / "requests.npy"),
            cycle_requests=how.requests,
            cycle_repeats=how.cycle_repeats,
            true_times=how.true_times,
            tokenizer=None,
        ),
        codec=how.codec,
        request=how.request,
        tokenizer=how.tokenizer,
    )
    for one in segments:
        reducer.feed(one)
    reducer.close()
    rows: dict[int, dict[str, int | None]] = {}
    for line in read_rows(folder / "rows.i64").tolist():
        row = {
            name: None if value == NULL else int(value) for name, value in zip(ROW_FIELDS, line, strict=True)
        }
        number = row["request"]
        assert number is not None
        assert number not in rows, "a request has two rows"
        rows[number] = row
    kind = chunk_type(true_times=how.true_times)
    records = np.array(read_chunks(folder / "chunks.bin", kind))
    chunks = [dict(zip(kind.names or (), map(int, record.tolist()), strict=True)) for record in records]
    return Reduced(rows, sorted(chunks, key=lambda one: (one["request"], one["index"])), reducer)


def chunked(*chunks: bytes) -> bytes:
    """A chunked 200 answer."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def counted(body: bytes, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    """An answer of known length."""
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, fields, len(body), body)


def answered(
    *pieces: bytes, request: int = 0, how: int = End.WHOLE, first_at: int = 100, every: int = 10
) -> Captured:
    """One request, sent at 10, whose answer came in pieces from ``first_at`` on."""
    reads = [Read(request, first_at + every * k, piece) for k, piece in enumerate(pieces)]
    return segment(reads, [Send(request, 5, 10)], [Finish(request, how, first_at + every * len(pieces))])

"""From spools to tables and pools, against the same worked out in plain Python."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bench.finishing.segments import (
    Finish,
    Read,
    Reduced,
    Send,
    Setting,
    answered,
    chunked,
    counted,
    reduced,
    segment,
)

from tokenweir.backends.openai import OpenAIBackend
from tokenweir.bench.engine.segment import End
from tokenweir.bench.finishing import tables
from tokenweir.bench.finishing.gaps import Gaps, RequestFacts, count_chunks
from tokenweir.bench.finishing.segments import Captured
from tokenweir.bench.finishing.spool import (
    CHUNK,
    NULL,
    ROW_FIELDS,
    SOURCES,
    STATUSES,
    TRUE_CHUNK,
    chunk_blocks,
    chunk_type,
    read_chunks,
    read_rows,
)
from tokenweir.bench.finishing.tables import RequestsFile, RowSpools, requests_table, write_chunks
from tokenweir.bench.records.columns import PHASES, REQUESTS

Row = dict[str, Any]


def two_workers(tmp_path: Path) -> tuple[list[Path], list[Reduced]]:
    """Two workers' spools: requests 0, 2, 4 … and 1, 3, 5 …, with errors known by other indexes to each."""
    outcomes = [End.WHOLE, End.TIMEOUT, End.RESET, End.WHOLE, End.CANCELLED, End.CONNECT, End.WHOLE, End.EOF]
    folders: list[Path] = []
    made: list[Reduced] = []
    for worker in range(2):
        folder = tmp_path / f"worker-{worker}"
        folder.mkdir()
        segments = [
            segment((), [Send(k, k, -1, -1)], [Finish(k, how)])
            if how == End.CONNECT
            else answered(chunked(b"a\n", b"b\n", b"c\n"), request=k, how=how, first_at=100 * k + 1)
            for k, how in reversed(list(enumerate(outcomes)))
            if k % 2 == worker
        ]
        folders.append(folder)
        made.append(reduced(folder, segments))
    return folders, made


def published(folders: list[Path], made: list[Reduced], path: Path) -> list[Row]:
    spools = RowSpools(folders, [one.reducer.errors for one in made], [one.reducer.reasons for one in made])
    file = RequestsFile(path, {"tokenweir.run_id": "run_1"})
    phases = np.full(len(spools), PHASES.index("measured"), np.int8)
    for where, rows in spools.groups():
        file.write(requests_table(rows, phases[where], spools.names))
    file.close()
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("group", [1, 3, 1 << 17])
def test_rows_of_several_workers_come_in_order_with_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", group)
    folders, made = two_workers(tmp_path)
    rows = published(folders, made, tmp_path / "requests.parquet")
    assert [row["request"] for row in rows] == list(range(8))
    for number, row in enumerate(rows):
        one = made[number % 2]
        spooled = one.rows[number]
        assert row["status"] == one.status(number)
        assert row["error"] == one.error(number)
        assert row["phase"] == "measured"
        source = spooled["token_source"]
        assert row["token_source"] == (None if source is None else SOURCES[source])
        count = spooled["icl_count"] or 0
        assert row["icl_mean_ns"] == ((spooled["icl_sum_ns"] or 0) // count if count else None)
        assert row["icl_max_ns"] == (spooled["icl_max_ns"] if count else None)
        told = spooled["answer_hash"]
        assert row["answer_hash"] == (None if told is None else told % (1 << 64))
        for name in set(REQUESTS.names) & set(ROW_FIELDS) - {
            "status", "error", "finish_reason", "token_source", "answer_hash", "icl_max_ns",
        }:  # fmt: skip
            assert row[name] == spooled[name], name
    assert [row["finish_reason"] for row in rows if row["status"] == "completed"] == ["stop"] * 4
    assert pq.read_schema(tmp_path / "requests.parquet").remove_metadata() == REQUESTS


def test_one_column_is_that_of_the_rows(tmp_path: Path) -> None:
    folders, made = two_workers(tmp_path)
    spools = RowSpools(folders, [one.reducer.errors for one in made], [[], []])
    status = spools.column("status").tolist()
    assert [STATUSES[code] for code in status] == [made[k % 2].status(k) for k in range(8)]
    sent = [made[k % 2].rows[k]["sent_ns"] for k in range(8)]
    assert spools.column("sent_ns").tolist() == [NULL if one is None else one for one in sent]


def test_names_that_a_killed_process_never_told_are_unknown(tmp_path: Path) -> None:
    folders, made = two_workers(tmp_path)
    spools = RowSpools(folders, [[], made[1].reducer.errors], [[], []])
    ((where, rows),) = spools.groups()
    table = requests_table(rows, np.zeros(len(spools), np.int8)[where], spools.names).to_pylist()
    assert {row["error"] for row in table if row["request"] % 2 == 0 and row["status"] != "completed"} == {
        tables.UNKNOWN
    }
    assert table[1]["error"] == "timeout"


def test_no_rows_are_no_trouble(tmp_path: Path) -> None:
    spools = RowSpools([tmp_path], [[]], [[]])
    assert len(spools) == 0
    assert list(spools.groups()) == []
    assert spools.column("request").tolist() == []


@pytest.mark.parametrize("more", [1, 8, 35 * 8 - 1])
def test_a_spool_that_was_cut_short_gives_its_whole_lines(tmp_path: Path, more: int) -> None:
    path = tmp_path / "rows.i64"
    line = np.arange(len(ROW_FIELDS), dtype=np.int64)
    path.write_bytes(line.tobytes() * 2 + bytes(more))
    assert read_rows(path).tolist() == [line.tolist()] * 2
    for kind in (CHUNK, TRUE_CHUNK):
        chunks = tmp_path / "chunks.bin"
        chunks.write_bytes(np.ones(3, kind).tobytes() + b"x")
        assert len(read_chunks(chunks, kind)) == 3
        assert sum(len(block) for block in chunk_blocks(chunks, kind)) == 3
        assert count_chunks([tmp_path], kind) == 3


def test_the_chunk_table_is_in_order_of_load_request_and_index(tmp_path: Path) -> None:
    folders, made = two_workers(tmp_path)
    path = tmp_path / "chunks.parquet"
    kind = chunk_type(true_times=False)
    write_chunks(path, [(1, folders[1]), (0, folders[0]), (1, folders[0])], kind, {})
    rows = pq.read_table(path).to_pylist()
    keys = [(row["load"], row["request"], row["index"]) for row in rows]
    assert keys == sorted(keys)
    of_zero = [row for row in rows if row["load"] == 0]
    assert [(row["request"], row["index"], row["received_ns"]) for row in of_zero] == [
        (one["request"], one["index"], one["received_ns"]) for one in made[0].chunks
    ]
    assert {row["true_sent_ns"] for row in rows} == {None}
    assert {row["tokens"] for row in rows} == {1}


delays = st.integers(1, 5_000_000)


@settings(max_examples=30)
@given(st.data())
def test_pooled_gaps_are_what_going_through_the_chunks_gives(data: st.DataObject) -> None:
    requests = data.draw(st.integers(1, 5))
    measured = data.draw(st.lists(st.booleans(), min_size=requests, max_size=requests))
    at = 0
    segments: list[Captured] = []
    for request in range(requests):
        lines = data.draw(st.lists(st.sampled_from([b"a\n", b"b\nc\n"]), min_size=1, max_size=6))
        body = b"".join(lines)
        reads = [Read(request, at := at + data.draw(delays), counted(body)[: -len(body)])]
        reads += [Read(request, at := at + data.draw(delays), line) for line in lines]
        segments.append(segment(reads, [Send(request, 0, 0)], [Finish(request)]))
    window = sorted(data.draw(st.tuples(st.integers(0, at), st.integers(0, at))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = reduced(folder, segments)
        rows = [made.rows[k] for k in range(requests)]
        facts = RequestFacts(
            np.arange(requests),
            np.array(measured),
            *(
                np.array([NULL if row[field] is None else row[field] for row in rows], np.int64)
                for field in ("output_tokens", "chunks", "counted_tokens")
            ),
        )
        gaps = Gaps((window[0], window[1]), folder)
        gaps.add(folder, CHUNK, facts)
        gaps.close()
        mine = [one for one in made.chunks if measured[one["request"]] and one["gap_ns"] >= 0]
        used = [one["gap_ns"] for one in mine if not one["excluded"]]
        assert gaps.gaps == len(mine)
        assert gaps.excluded == len(mine) - len(used)
        assert gaps.unresolved == 0
        for pool in (gaps.itl, gaps.icl):
            assert pool.n == len(used)
            if used:
                assert pool.mean == pytest.approx(sum(used) / len(used))
                assert (pool.low, pool.high) == (min(used), max(used))
        inside = [one for one in made.chunks if window[0] <= one["received_ns"] <= window[1]]
        assert gaps.output_tokens_in_window == len(inside)
        assert gaps.itl_error.n == 0


def stream(*texts: str, usage: int) -> bytes:
    events = [b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode() for text in texts]
    events.append(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
    events.append(b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\ndata: [DONE]\n\n' % usage)
    return chunked(*events)


@pytest.mark.parametrize(
    ("tokens", "single"),
    [(3, True), (4, True), (5, False), (2, False), (6, False)],
    ids=["each one", "and an unseen end", "more", "fewer", "two each"],
)
def test_only_gaps_between_single_tokens_are_inter_token_gaps(
    tmp_path: Path, tokens: int, *, single: bool
) -> None:
    answer = stream("a", "b", "c", usage=tokens)
    cuts = [answer.index(b'"b"') - 30, answer.index(b'"c"') - 30]
    pieces = [answer[: cuts[0]], answer[cuts[0] : cuts[1]], answer[cuts[1] :]]
    made = reduced(tmp_path, [answered(*pieces)], Setting(codec=OpenAIBackend(), request=Setting().request))
    row = made.rows[0]
    facts = RequestFacts(
        np.zeros(1, np.int64),
        np.ones(1, np.bool_),
        *(
            np.array([NULL if row[field] is None else row[field]], np.int64)
            for field in ("output_tokens", "chunks", "counted_tokens")
        ),
    )
    gaps = Gaps((0, 10**6), tmp_path)
    gaps.add(tmp_path, CHUNK, facts)
    gaps.close()
    assert gaps.icl.n == 2
    assert gaps.itl.n == (2 if single else 0)
    assert gaps.unresolved == (0 if single else 2)
    assert gaps.output_tokens_in_window == tokens


def test_tokens_of_whole_answers_count_when_their_last_byte_came(tmp_path: Path) -> None:
    gaps = Gaps((100, 200), tmp_path)
    gaps.add_whole_answers(
        np.array([50, 100, 150, 200, 250, NULL, 150]), np.array([1, 2, 4, 8, 16, 32, NULL])
    )
    gaps.close()
    assert gaps.output_tokens_in_window == 14


def test_chunks_without_a_row_do_not_count_as_gaps(tmp_path: Path) -> None:
    open_ended = segment([Read(3, 50, counted(b"a\nb\n")[:-2]), Read(3, 60, b"b\n")], [Send(3, 1, 2)])
    made = reduced(tmp_path, [open_ended])
    assert made.rows == {}
    none = np.zeros(0, np.int64)
    gaps = Gaps((0, 1000), tmp_path)
    gaps.add(tmp_path, CHUNK, RequestFacts(none, none.astype(np.bool_), none, none, none))
    gaps.close()
    assert (gaps.gaps, gaps.icl.n) == (0, 0)

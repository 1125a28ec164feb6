from __future__ import annotations

import errno
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bench.engine.stage import REQUEST, Script, Server, stage
from tests.unit.bench.finishing.segments import chunked, counted

from tokenweir.bench.engine import capture, segment
from tokenweir.bench.engine.segment import MAGIC, Segment, SegmentWriter
from tokenweir.bench.finishing.segments import Captured, read_segment
from tokenweir.core.errors import DiskFullError, RecordError

SECOND_NS = 1_000_000_000
Filled = tuple[list[bytes], list[int], list[int]]


def fill(made: Segment, reads: list[bytes], sends: list[int], ends: list[int]) -> None:
    for number, read in enumerate(reads):
        made.raw[made.used : made.used + len(read)] = read
        made.used += len(read)
        made.requests.append(number)
        made.offsets.append(made.used)
        made.stamps += segment_stamp(number)
    made.sends.extend(sends)
    made.ends.extend(ends)
    made.clocks.extend((7, 8, 9, 10))


def segment_stamp(number: int) -> bytes:
    return array("q", [number + 1, 2 * number]).tobytes()


def read_back(folder: Path) -> list[Captured]:
    return [read_segment(path) for path in sorted(folder.glob("*.seg"))]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    readable, writable = os.pipe()
    yield readable, writable
    os.close(readable)
    os.close(writable)


quads = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=3).map(lambda one: one * 4)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.lists(st.binary(min_size=1, max_size=50), max_size=6), quads, quads), max_size=6)
)
def test_segments_read_back_as_they_were_filled(filled: list[Filled]) -> None:
    readable, writable = os.pipe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = SegmentWriter(folder, writable)
        made = Segment()
        for one in filled:
            fill(made, *one)
            made = writer.put(made)
        writer.close(made)
        found = read_back(folder)
    os.close(writable)
    announced = os.read(readable, 64)
    os.close(readable)
    kept = [one for one in filled if any(one)]
    assert len(announced) == len(found) == len(kept)
    for (reads, sends, ends), one in zip(kept, found, strict=True):
        assert one.raw == b"".join(reads)
        assert one.requests.tolist() == list(range(len(reads)))
        assert one.stamps_ns.tolist() == [(k + 1) * SECOND_NS + 2 * k for k in range(len(reads))]
        assert one.sends.reshape(-1).tolist() == sends
        assert one.ends.reshape(-1).tolist() == ends
        assert one.clocks.tolist() == [[7, 8], [9, 10]]


@pytest.mark.parametrize(
    "content", [b"", b"short", bytes(100), array("q", [MAGIC, 1, 0, 0, 0, 5]).tobytes() + b"few"]
)
def test_what_is_no_whole_segment_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.seg"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"0\.seg"):
        read_segment(path)


def test_a_segment_that_cannot_be_written_ends_the_capture_with_its_reason(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    folder = tmp_path / "gone"
    writer = SegmentWriter(folder, pipe[1])
    made = Segment()
    fill(made, [b"x"], [], [])
    with pytest.raises(DiskFullError, match=r"gone.*No such file"):
        writer.close(made)


def test_a_full_disk_is_told_at_a_later_put_and_nothing_half_written_is_announced(
    pipe: tuple[int, int],
) -> None:
    # Every write to /dev/full fails as one to a full disk does.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "00000001.seg").symlink_to("/dev/full")
        writer = SegmentWriter(folder, pipe[1])

        def fill_and_put(made: Segment) -> None:
            for _ in range(9):
                fill(made, [b"x"], [], [])
                made = writer.put(made)

        with pytest.raises(DiskFullError) as caught:
            fill_and_put(Segment())
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        assert "--out" in caught.value.mend
        assert os.read(pipe[0], 64) == b"s"
        with pytest.raises(DiskFullError):
            writer.close(Segment())


def test_a_stream_may_span_many_segments() -> None:
    small = segment.ROOM_BYTES + 200
    pieces = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
    pieces += [b"%x\r\n%b\r\n" % (60, b"y" * 59 + b"\n") for _ in range(40)]
    pieces += [b"0\r\n\r\n"]

    def script(server: Server) -> Script:
        line = server.accept()
        for _ in range(2):
            line.hear()
            yield from line.say(*pieces)

    with pytest.MonkeyPatch.context() as patch, stage() as stg:
        for module in (segment, capture):
            patch.setattr(module, "SEGMENT_BYTES", small)
        taken = stg.play(script, requests=2)
    assert len(taken.segments) > 10
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    for request in range(2):
        assert b"".join(taken.reads(request)) == b"".join(pieces)
    # A measurement of the clocks at each border brackets every stamp.
    for before, after in zip(taken.segments, taken.segments[1:], strict=False):
        assert len(after.clocks)
        assert before.clocks[-1, 0] <= after.clocks[-1, 0]


def test_an_answer_larger_than_a_segment_is_captured_whole() -> None:
    body = os.urandom(3 * segment.ROOM_BYTES)
    answers = [counted(body), chunked(body)]

    def script(server: Server) -> Script:
        line = server.accept()
        for answer in answers:
            line.hear()
            yield from line.say(answer)

    with pytest.MonkeyPatch.context() as patch, stage() as stg:
        for module in (segment, capture):
            patch.setattr(module, "SEGMENT_BYTES", 2 * segment.ROOM_BYTES)
        taken = stg.play(script, requests=2)
    assert [b"".join(taken.reads(k)) for k in range(2)] == answers
    assert all(len(one.raw) <= 2 * segment.ROOM_BYTES for one in taken.segments)


def test_a_capture_that_cannot_write_ends_with_its_reason() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        while True:
            line.hear()
            yield from line.say(counted(b"z" * 100))

    with pytest.MonkeyPatch.context() as patch, stage() as stg:
        for module in (segment, capture):
            patch.setattr(module, "SEGMENT_BYTES", segment.ROOM_BYTES + 100)
        (stg.folder / "00000002.seg").symlink_to("/dev/full")
        with pytest.raises(DiskFullError):
            stg.play(script, requests=500)
        assert not (stg.folder / "00000002.seg").is_symlink(), "a part of a segment takes no room"
        kept = read_back(stg.folder)
    assert len(kept) == 2
    assert REQUEST

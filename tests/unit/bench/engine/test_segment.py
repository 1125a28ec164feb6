from __future__ import annotations

import errno
import os
import select
import shutil
import sys
import tempfile
from array import array
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bench.engine.stage import Script, Server, copies, stage
from tests.unit.bench.finishing.segments import chunked, counted

from tokenweir.bench.engine.pool import SLOTS, create_pool, map_pool
from tokenweir.bench.engine.segment import HEAD, LINE, MAGIC, ROOM_BYTES, SPILLED, Outlet, Segment
from tokenweir.bench.finishing.segments import Captured, Inlet, parse
from tokenweir.core.errors import DiskFullError, RecordError

SECOND_NS = 1_000_000_000
LENT = SLOTS - 2
"""Slots that the finishing process may have at a time."""
SLOT_BYTES = 192 << 10
"""Room for 120 KiB of raw bytes, of which a segment takes 56 KiB before it counts as full."""


class Filling(NamedTuple):
    """What is put into a segment: bytes of each read, and the numbers of sends and ends."""

    reads: Sequence[bytes] = ()
    sends: Sequence[int] = ()
    ends: Sequence[int] = ()


class Ends:
    """Both ends of a hand-over, without the processes that they are in."""

    def __init__(self, folder: Path, *, portable: bool = False) -> None:
        self.folder = folder
        self.pool = create_pool(folder, portable=portable, slot_bytes=SLOT_BYTES)
        self.notices, self.notify = os.pipe()
        self.outlet = Outlet(folder, self.pool, self.notify)
        self.inlet = Inlet(folder, self.pool)
        self.filling = self.outlet.first

    def put(self, *fillings: Filling) -> None:
        for one in fillings:
            fill(self.filling, one)
            self.filling = self.outlet.put(self.filling)

    def announced(self) -> bytes:
        return os.read(self.notices, 1 << 12) if select.select([self.notices], [], [], 0)[0] else b""

    def take(self, announced: bytes) -> list[Captured]:
        return copies(self.inlet, announced)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.seg"))


@contextmanager
def both_ends(*, portable: bool = False) -> Generator[Ends]:
    with tempfile.TemporaryDirectory() as name:
        made = Ends(Path(name), portable=portable)
        try:
            yield made
        finally:
            for fd in (made.pool, made.notices, made.notify):
                os.close(fd)


def fill(segment: Segment, filling: Filling) -> None:
    for number, read in enumerate(filling.reads):
        segment.view[segment.used : segment.used + len(read)] = read
        segment.used += len(read)
        segment.requests.append(number)
        segment.offsets.append(segment.used)
        segment.stamps += array("q", [number + 1, 2 * number]).tobytes()
    segment.sends += b"".join(LINE.pack(value, 1, 2, 3) for value in filling.sends)
    segment.ends += b"".join(LINE.pack(value, 1, 2, 3) for value in filling.ends)
    segment.clocks.extend((7, 8, 9, 10))


def check(found: Captured, filling: Filling) -> None:
    reads, sends, ends = filling
    assert found.raw == b"".join(reads)
    assert found.requests.tolist() == list(range(len(reads)))
    assert found.stamps_ns.tolist() == [(k + 1) * SECOND_NS + 2 * k for k in range(len(reads))]
    assert found.sends.tolist() == [[value, 1, 2, 3] for value in sends]
    assert found.ends.tolist() == [[value, 1, 2, 3] for value in ends]
    assert found.clocks.tolist() == [[7, 8], [9, 10]]


def numbered(number: int) -> Filling:
    """A segment that can be told from others."""
    return Filling([b"read of %d" % number], [number], [number])


TOO_LONG = Filling([b"x"], range(3100), range(3100))
"""Its tables have no room behind the raw bytes."""

numbers = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=3)
small = st.builds(Filling, st.lists(st.binary(min_size=1, max_size=50), max_size=6), numbers, numbers)
steps = st.lists(st.one_of(small, st.just(TOO_LONG), st.integers(1, 5), st.none()), max_size=18)


@settings(max_examples=60, deadline=None)
@given(steps=steps, portable=st.booleans())
def test_segments_come_out_in_order_and_as_they_were_filled_however_late_they_are_taken(
    *, steps: list[Filling | int | None], portable: bool
) -> None:
    with both_ends(portable=portable) as ends:
        waiting, found = b"", list[Captured]()
        for step in steps:
            if isinstance(step, Filling):
                ends.put(step)
            elif step is None:
                ends.outlet.step()
            else:
                # As many are taken as the finishing process got to.
                waiting += ends.announced()
                found += ends.take(waiting[:step])
                waiting = waiting[step:]
        ends.outlet.finish()
        found += ends.take(waiting + ends.announced())
        kept = [step for step in steps if isinstance(step, Filling) and any(step)]
        assert len(found) == len(kept)
        for one, filling in zip(found, kept, strict=True):
            check(one, filling)
        assert not ends.files(), "a file goes when it is read"
        assert ends.outlet.ready(ends.filling), "all slots are free again"


def test_while_slots_are_free_nothing_is_written_to_disk() -> None:
    with both_ends() as ends:
        for number in range(5 * SLOTS):
            ends.put(numbered(number))
            announced = ends.announced()
            assert SPILLED not in announced
            assert not ends.files()
            check(ends.take(announced)[0], numbered(number))


def test_what_finds_no_free_slot_goes_to_files_and_the_slots_are_used_again_once_they_are_given_back() -> (
    None
):
    with both_ends() as ends:
        ends.put(*map(numbered, range(LENT + 3)))
        ends.outlet.finish()
        waiting = ends.announced()
        assert [what == SPILLED for what in waiting] == [False] * LENT + [True] * 3
        assert len(ends.files()) == 3 == ends.outlet.spilled
        assert not ends.outlet.ready(ends.filling)
        found = ends.take(waiting[:1])
        assert ends.outlet.ready(ends.filling)
        ends.put(numbered(LENT + 3))
        later = ends.announced()
        assert SPILLED not in later
        found += ends.take(waiting[1:] + later)
        for number, one in enumerate(found):
            check(one, numbered(number))
        assert len(found) == LENT + 4


def test_a_segment_is_written_in_steps_while_the_next_is_filled_and_announced_before_it() -> None:
    with both_ends() as ends:
        large = Filling([b"x" * 50_000, b"y" * 50_000])
        ends.put(*map(numbered, range(LENT)), large)
        announced = ends.announced()
        assert len(announced) == LENT
        steps = 0
        while ends.outlet.spilling is not None:
            assert not ends.announced(), "it is announced when it is whole"
            fill(ends.filling, Filling([b"meanwhile %d" % steps]))
            ends.outlet.step()
            steps += 1
        assert steps > 5
        assert ends.announced() == bytes([SPILLED])
        check(ends.take(bytes([SPILLED]))[0], large)
        assert len(ends.filling.requests) == steps
        ends.outlet.step()


def test_tables_too_long_for_a_slot_go_to_a_file() -> None:
    with both_ends() as ends:
        ends.put(numbered(0), TOO_LONG, numbered(2))
        announced = ends.announced()
        assert [what == SPILLED for what in announced] == [False, True, False]
        for one, filling in zip(ends.take(announced), (numbered(0), TOO_LONG, numbered(2)), strict=True):
            check(one, filling)


@pytest.mark.parametrize("content", [b"", b"short", bytes(100), HEAD.pack(MAGIC, 1, 0, 0, 0, 5)[:-1]])
def test_what_is_no_whole_segment_is_refused(content: bytes) -> None:
    with pytest.raises(RecordError, match=r"00000007\.seg"):
        parse(content, "00000007.seg")


def test_a_segment_cut_short_in_its_file_is_refused() -> None:
    with both_ends() as ends:
        ends.put(*map(numbered, range(LENT + 1)))
        ends.outlet.finish()
        path = ends.folder / ends.files()[0]
        os.truncate(path, path.stat().st_size - 8)
        with pytest.raises(RecordError, match="cut short"):
            ends.take(ends.announced()[-1:])


def test_a_slot_that_was_not_handed_over_is_refused() -> None:
    with both_ends() as ends, pytest.raises(RecordError, match="slot 2"):
        ends.take(bytes([2]))


def test_a_disk_full_while_spilling_ends_the_capture_with_its_reason_and_nothing_half_written_is_announced() -> (
    None
):
    # Every write to /dev/full fails as one to a full disk does.
    with both_ends() as ends:
        (ends.folder / "00000001.seg").symlink_to("/dev/full")
        ends.put(*map(numbered, range(LENT + 2)))
        with pytest.raises(DiskFullError) as caught:
            ends.outlet.step()
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        assert "--out" in caught.value.mend
        assert ends.files() == ["00000000.seg"], "a part of a segment takes no room"
        found = ends.take(ends.announced())
        for number, one in enumerate(found):
            check(one, numbered(number))
        assert len(found) == LENT + 1


def test_a_folder_that_is_gone_is_named() -> None:
    with both_ends() as ends:
        ends.put(*map(numbered, range(LENT + 1)))
        shutil.rmtree(ends.folder)
        with pytest.raises(DiskFullError, match="No such file"):
            ends.put(numbered(9))
        ends.folder.mkdir()


def test_when_the_finishing_process_has_died_the_capture_goes_on_and_fills_no_disk() -> None:
    with both_ends() as ends:
        ends.put(numbered(0))
        os.close(ends.notices)
        ends.put(*map(numbered, range(1, 3 * SLOTS)))
        assert not ends.files()
        assert ends.filling.empty()
        ends.notices = os.open(os.devnull, os.O_RDONLY)


def test_a_pool_that_finds_no_room_says_so(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="gone"):
        create_pool(tmp_path / "gone", portable=True)


@pytest.mark.skipif(sys.platform != "linux", reason="memory has a descriptor on Linux only")
@pytest.mark.parametrize("portable", [False, True])
def test_a_pool_leaves_no_file_and_is_one_memory_for_all_who_map_it(
    tmp_path: Path, *, portable: bool
) -> None:
    fd = create_pool(tmp_path, portable=portable, slot_bytes=SLOT_BYTES)
    assert not list(tmp_path.iterdir())
    one, other = map_pool(fd, ahead=True), map_pool(fd)
    os.close(fd)
    assert len(one) == len(other) == SLOTS
    for number, slot in enumerate(one):
        assert len(slot) == SLOT_BYTES
        slot[5:6] = bytes((number,))
    assert [slot[5] for slot in other] == list(range(SLOTS))


def test_a_stream_may_span_many_segments() -> None:
    pieces = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
    pieces += [b"%x\r\n%b\r\n" % (9000, b"y" * 8999 + b"\n") for _ in range(40)]
    pieces += [b"0\r\n\r\n"]

    def script(server: Server) -> Script:
        line = server.accept()
        for _ in range(2):
            line.hear()
            yield from line.say(*pieces)

    with stage(slot_bytes=SLOT_BYTES) as stg:
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
    body = os.urandom(3 * ROOM_BYTES)
    answers = [counted(body), chunked(body)]

    def script(server: Server) -> Script:
        line = server.accept()
        for answer in answers:
            line.hear()
            yield from line.say(answer)

    with stage(slot_bytes=SLOT_BYTES) as stg:
        taken = stg.play(script, requests=2)
    assert [b"".join(taken.reads(k)) for k in range(2)] == answers
    assert all(len(one.raw) <= SLOT_BYTES * 5 // 8 for one in taken.segments)
    assert len(taken.segments) >= 4


def test_a_capture_that_cannot_write_ends_with_its_reason() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        while True:
            line.hear()
            yield from line.say(counted(b"z" * 20_000))

    with stage(slot_bytes=SLOT_BYTES) as stg:
        (stg.folder / "00000001.seg").symlink_to("/dev/full")
        with pytest.raises(DiskFullError):
            stg.play(script, requests=500)
        assert [path.name for path in stg.folder.glob("*.seg")] == ["00000000.seg"]
        kept = stg.handed_over()
    assert len(kept) == LENT + 1
    assert all(len(one.raw) > 56 << 10 for one in kept)

from __future__ import annotations

import signal
import sys

from hypothesis import given
from hypothesis import strategies as st

from tokenweir import config
from tokenweir.runtime.supervision.child_process import LineCutter, ending, environment
from tokenweir.telemetry import machine


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), min_size=1), max_size=20),
    st.data(),
)
def test_lines_come_out_as_they_were_written_however_they_arrive(
    lines: list[str], data: st.DataObject
) -> None:
    output = "".join(f"{line}\n" for line in lines).encode()
    cutter = LineCutter()
    got: list[str] = []
    at = 0
    while at < len(output):
        step = data.draw(st.integers(1, 40))
        got += cutter.feed(output[at : at + step])
        at += step
    assert got + cutter.end() == lines


def test_a_line_without_end_does_not_pile_up() -> None:
    cutter = LineCutter()
    got = [piece for _ in range(10) for piece in cutter.feed(b"x" * 5_000)] + cutter.end()
    assert "".join(got) == "x" * 50_000
    assert max(map(len, got)) == 8 * 1024


def test_empty_lines_and_carriage_returns_are_left_out() -> None:
    cutter = LineCutter()
    assert cutter.feed(b"one\r\n\n\ntwo\n") == ["one", "two"]


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert LineCutter().feed(b"\xff\xfe!\n") == ["\ufffd\ufffd!"]


def test_an_end_is_told_with_the_last_line_that_says_something() -> None:
    trace = ("Traceback (most recent call last):", '  File "x.py", line 1', "MemoryError: 7 bytes", "  ", "")
    assert ending(1, trace) == "it ended with status 1: MemoryError: 7 bytes"
    assert ending(-signal.SIGKILL, ()) == "it was ended by SIGKILL"
    assert ending(-200, ()) == "it was ended by signal 200"


def test_only_an_engine_that_computes_gets_another_blas() -> None:
    ours = config.read_environment().get("LD_PRELOAD")
    library = machine.blas().preloadable if sys.platform == "linux" else None
    plain, fast = environment(preload_blas=False), environment(preload_blas=True)
    assert plain.get("LD_PRELOAD") == ours
    if library is not None:
        assert fast["LD_PRELOAD"].split(":")[0] == str(library)
    else:
        assert fast.get("LD_PRELOAD") == ours
    assert plain["PYTHONUNBUFFERED"] == fast["PYTHONUNBUFFERED"] == "1"

from __future__ import annotations

import threading

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

from tokenweir.runtime.engines.mlx.hands import Hands

DEADLINE_S = 20.0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_part_is_done_once(count: int) -> None:
    done: list[int] = []
    Hands(count).work(done.append, range(7))
    assert sorted(done) == list(range(7))


def test_two_parts_are_done_at_once() -> None:
    together = threading.Barrier(2)

    def do(_: int) -> None:
        together.wait(DEADLINE_S)

    Hands(2).work(do, range(2))


def test_what_the_other_thread_has_not_begun_is_done_here() -> None:
    begun, last_done = threading.Event(), threading.Event()
    by: dict[int, int] = {}

    def do(part: int) -> None:
        by[part] = threading.get_ident()
        if part == 0:
            assert begun.wait(DEADLINE_S)
        elif part == 1:
            begun.set()
            assert last_done.wait(DEADLINE_S)
        else:
            last_done.set()

    Hands(2).work(do, range(3))
    assert by[0] == by[2] == threading.get_ident() != by[1]


def test_what_fails_here_leaves_nothing_running_behind() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def do(part: int) -> None:
        if part:
            begun.set()
            assert may_end.wait(DEADLINE_S)
            ended.set()
        else:
            assert begun.wait(DEADLINE_S)
            may_end.set()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Hands(2).work(do, range(2))
    assert ended.is_set()


def test_what_fails_in_the_other_thread_fails_here() -> None:
    begun = threading.Event()

    def do(part: int) -> None:
        if part:
            begun.set()
            raise ValueError("no")
        assert begun.wait(DEADLINE_S)

    with pytest.raises(ValueError, match="no"):
        Hands(2).work(do, range(2))

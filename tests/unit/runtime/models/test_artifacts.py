from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenweir.runtime.models.artifacts import ArtifactCache


def file(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(b"x" * size)

    return write


def folder(**sizes: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        for name, size in sizes.items():
            (path / name).write_bytes(b"y" * size)

    return write


def used(cache: ArtifactCache, name: str, at: int) -> None:
    os.utime(cache.path("weights", name), ns=(at, at))


def test_what_is_put_is_found_whole(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "new" / "place", 1000)
    assert cache.get("weights", "a") is None
    path = cache.put("weights", "a", folder(config=10, model=20))
    assert path == cache.get("weights", "a") == tmp_path / "new" / "place" / "weights" / "a"
    assert path is not None
    assert sorted(one.name for one in path.iterdir()) == ["config", "model"]
    assert cache.put("prompts", "a", file(5)) is not None
    assert cache.bytes == 35
    cache.discard("weights", "a")
    cache.discard("weights", "a")
    assert cache.get("weights", "a") is None
    assert cache.bytes == 5


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 100)
    for number, name in enumerate("abc"):
        cache.put("weights", name, folder(model=30))
        used(cache, name, number + 1)
    assert cache.get("weights", "a") is not None, "a use"
    cache.put("weights", "d", file(30))
    assert [one.path.name for one in cache.artifacts()] == ["c", "a", "d"]


def test_what_is_larger_than_the_bound_is_not_kept_and_costs_nothing_else(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 100)
    cache.put("weights", "a", file(60))
    assert cache.put("weights", "b", file(101)) is None
    assert cache.get("weights", "a") is not None
    assert cache.bytes == 60


@pytest.mark.parametrize("first", [file(3), folder(old=3)])
@pytest.mark.parametrize("second", [file(7), folder(fresh=7)])
def test_a_new_one_replaces_the_old(
    tmp_path: Path, first: Callable[[Path], None], second: Callable[[Path], None]
) -> None:
    cache = ArtifactCache(tmp_path, 100)
    cache.put("prompts", "a", first)
    cache.put("prompts", "a", second)
    assert cache.bytes == 7
    assert len(cache.artifacts()) == 1


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 100)

    def half(path: Path) -> None:
        folder(part=50)(path)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        cache.put("weights", "a", half)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_full_disk_keeps_nothing_and_harms_nobody(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 100)
    cache.put("weights", "a", file(10))

    def full(path: Path) -> None:
        folder(part=50)(path)
        raise OSError(errno.ENOSPC, "no room")

    assert cache.put("weights", "b", full) is None
    assert [one.path.name for one in cache.artifacts()] == ["a"]
    assert [one.name for one in (tmp_path / "weights").iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    place = tmp_path / "weights"
    place.mkdir()
    for name in (".draft-old", ".draft-new"):
        folder(model=10)(place / name)
    os.utime(place / ".draft-old", ns=(1, 1))
    cache = ArtifactCache(tmp_path, 100)
    assert [one.name for one in place.iterdir()] == [".draft-new"]
    assert cache.artifacts() == []


def test_another_process_may_write_the_same_at_the_same_time(tmp_path: Path) -> None:
    mine, theirs = ArtifactCache(tmp_path, 100), ArtifactCache(tmp_path, 100)

    def slow(path: Path) -> None:
        folder(model=10)(path)
        assert theirs.put("weights", "a", folder(model=10)) is not None

    assert mine.put("weights", "a", slow) is not None
    assert mine.bytes == 10


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "."])
def test_a_name_is_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a file"):
        ArtifactCache(tmp_path, 100).put("weights", name, file(1))


@settings(max_examples=30, deadline=None)
@given(moves=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 70)), max_size=25))
def test_the_bound_holds_and_the_latest_is_there(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]]
) -> None:
    cache = ArtifactCache(tmp_path_factory.mktemp("cache"), 100)
    for name, size in moves:
        assert cache.put("weights", name, file(size)) is not None
        assert cache.bytes <= 100
        assert cache.get("weights", name) is not None

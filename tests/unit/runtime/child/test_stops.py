from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.runtime.child.stops import StopMatcher, partial

letters = st.text(alphabet="abc", max_size=30)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(edges)]


def run(pieces: list[str], wanted: list[str]) -> tuple[str, str]:
    matcher = StopMatcher(wanted)
    said = "".join(matcher.feed(piece) for piece in pieces)
    if not matcher.hit:
        said += matcher.finish()
    return said, matcher.hit


@given(letters, stops, st.lists(st.integers(0, 30)))
def test_the_answer_does_not_depend_on_how_it_was_cut(
    text: str, wanted: list[str], places: list[int]
) -> None:
    assert run(cut(text, places), wanted) == run(list(text), wanted)


@given(letters, stops)
def test_the_answer_holds_no_stop_string_and_loses_nothing_before_it(text: str, wanted: list[str]) -> None:
    said, hit = run(list(text), wanted)
    assert not any(stop in said for stop in wanted)
    assert text.startswith(said + hit)
    assert bool(hit) == any(stop in text for stop in wanted)


@given(letters, stops)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, wanted: list[str]) -> None:
    matcher = StopMatcher(wanted)
    said = ""
    for place, letter in enumerate(text, 1):
        said += matcher.feed(letter)
        if matcher.hit:
            return
        held = text[len(said) : place]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in wanted)


def test_nothing_follows_a_stop_string() -> None:
    matcher = StopMatcher(["STOP"])
    assert [matcher.feed(piece) for piece in ("one ST", "OP two", " three")] == ["one ", "", ""]
    assert matcher.finish() == ""


def test_the_longest_beginning_is_found() -> None:
    assert partial("one ab", ["abc", "bd"]) == 2
    assert partial("one abc", ["abc"]) == 0
    assert partial("", ["abc"]) == 0

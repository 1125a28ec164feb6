from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.gateway.pipeline.patterns import BUILT_IN, Pattern, Redactor

ALL = Redactor(list(BUILT_IN.values()), replacement="[{name}]", longest=64)
NUMBERS = Redactor(
    [
        Pattern(name="four", expression=re.compile(r"\d{4}")),
        Pattern(name="word", expression=re.compile(r"\bab?c{1,3}\b")),
        Pattern(name="odd", expression=re.compile(r"\d\d\d"), check=lambda text: int(text) % 2 == 1),
    ],
    replacement="<{name}>",
    longest=8,
)

PIECES = st.lists(st.text("0123abc -", max_size=9), max_size=12)
SECRETS = st.lists(
    st.sampled_from(
        [
            "write to a.b@example.org, please",
            "4111 1111 1111 1111",
            "4111 1111 1111 1112",
            "DE89 3704 0044 0532 0130 00",
            "10.0.0.255",
            "1.2.3.4.5",
            "+49 (30) 1234-5678",
            "sk-abcdefghijklmnop0123",
            "version 3.11",
            " ",
            "@",
            "a",
        ]
    ),
    max_size=8,
)


def streamed(redactor: Redactor, pieces: list[str]) -> str:
    stream = redactor.stream()
    return "".join(stream.feed(piece) for piece in pieces) + stream.flush()


@given(PIECES)
def test_a_text_is_redacted_alike_wherever_it_is_cut(pieces: list[str]) -> None:
    assert streamed(NUMBERS, pieces) == NUMBERS.whole("".join(pieces))


@given(SECRETS, st.lists(st.integers(1, 40), max_size=40))
def test_the_built_in_patterns_too(texts: list[str], sizes: list[int]) -> None:
    text = " ".join(texts)
    pieces, rest = list[str](), text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert streamed(ALL, [*pieces, rest]) == ALL.whole(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to a.b+c@mail.example.org.", "write to [email]."),
        ("card 4111-1111-1111-1111!", "card [card]!"),
        ("not a card 4111-1111-1111-1112!", "not a card 4111-1111-1111-1112!"),
        ("DE89370400440532013000", "[iban]"),
        ("DE88370400440532013000", "DE88370400440532013000"),
        (
            "at 192.168.0.1, 10.0.0.1. Not 1.2.3.4.5 or 999.1.1.1",
            "at [ipv4], [ipv4]. Not 1.2.3.4.5 or 999.1.1.1",
        ),
        ("call +49 30 1234567 now", "call [phone] now"),
        ("key sk-proj-abcdefghijklmnop_1", "key [secret]"),
        ("a@b is no address", "a@b is no address"),
        ("", ""),
    ],
)
def test_what_the_built_in_patterns_find(text: str, expected: str) -> None:
    assert ALL.whole(text) == expected


def test_a_stream_holds_back_no_more_than_it_must() -> None:
    stream = NUMBERS.stream()
    said = "".join(stream.feed("x") for _ in range(100))
    assert len(said) == 92
    assert stream.flush() == "x" * 8


def test_a_long_match_is_found_whole_and_an_endless_one_does_not_grow_for_ever() -> None:
    digits = Redactor([Pattern(name="n", expression=re.compile(r"\d+"))], replacement="#", longest=8)
    assert streamed(digits, ["a" * 20, *("1" * 100), "b" * 20]) == "a" * 20 + "#" + "b" * 20
    stream = digits.stream()
    for _ in range(1000):
        stream.feed("1")
    assert len(stream._text) < 400  # pyright: ignore[reportPrivateUsage]

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import InputError
from tokenweir.core.ids import format_id, new_id, parse_id, uuid7

_ats = st.integers(0, (2**48 - 1) * 1_000_000)
_randoms = st.integers(0, 2**62 - 1)


@given(_ats, _randoms)
def test_parsed_id_holds_what_was_put_in(at: int, random: int) -> None:
    uuid = uuid7(at, random)
    text = format_id("run", uuid)
    parsed = parse_id(text, prefix="run")
    assert (parsed.prefix, parsed.uuid, parsed.text) == ("run", uuid, text)
    assert 0 <= at - parsed.at < 245
    assert uuid7(parsed.at, random) == uuid


@given(_ats, _randoms)
def test_is_a_uuid_of_version_7(at: int, random: int) -> None:
    uuid = uuid7(at, random)
    assert uuid >> 80 == at // 1_000_000
    assert (uuid >> 76) & 15 == 7
    assert (uuid >> 62) & 3 == 2
    assert uuid & (2**62 - 1) == random


@given(_ats, _ats, _randoms, _randoms)
def test_text_sorts_by_time(first: int, second: int, a: int, b: int) -> None:
    if abs(first - second) > 250:
        texts = [format_id("run", uuid7(first, a)), format_id("run", uuid7(second, b))]
        assert (texts == sorted(texts)) == (first < second)


def test_new_ids_differ_and_look_as_documented() -> None:
    ids = {new_id("run") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"run_[0-9A-HJKMNP-TV-Z]{26}", text) for text in ids)


def test_look_alike_letters_and_lower_case_are_read() -> None:
    text = format_id("run", uuid7(1_700_000_000_000_000_000, 1))
    prefix, letters = text.split("_")
    assert parse_id(f"{prefix}_{letters.lower()}").text == text
    assert parse_id(f"{prefix}_{letters.replace('0', 'o').replace('1', 'l')}").text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "run",
        "run_",
        "run_123",
        "RUN_01K9Z3V8QJ7W2X4Y5Z6A7B8C9D",
        "run_" + "U" * 26,
        "run_" + "0" * 26,
        "run_" + "Z" * 26,
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_id(text)


def test_prefix_is_checked() -> None:
    with pytest.raises(InputError, match="does not start with run_"):
        parse_id(new_id("corpus"), prefix="run")
    with pytest.raises(InputError, match="prefix"):
        new_id("Run")

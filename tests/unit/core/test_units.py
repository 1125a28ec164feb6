from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import InputError
from tokenweir.core.units import (
    format_duration,
    format_number,
    format_rate,
    parse_count,
    parse_duration,
    parse_rate,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("200ms", 200_000_000),
        ("1.5s", 1_500_000_000),
        ("2m", 120_000_000_000),
        ("2min", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("50us", 50_000),
        ("50µs", 50_000),
        ("50μs", 50_000),
        ("7ns", 7),
        ("0s", 0),
        (" 0.1 s ", 100_000_000),
        (".5s", 500_000_000),
    ],
)
def test_duration_is_read_exactly(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


def test_bare_number_says_what_to_write() -> None:
    with pytest.raises(InputError) as caught:
        parse_duration("5", what="--duration")
    assert str(caught.value) == "--duration 5 has no unit; write 5s, 5ms or 5m"


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1.s", "1e3s", "five s", "1 day", "5S", "0.5ns", "999999999999h", "1s 2"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--timeout"):
        parse_duration(text, what="--timeout")


@given(st.integers(0, 2**63 - 1))
def test_formatted_duration_reads_back(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (60_000_000_000, "1m"),
        (90_000_000_000, "90s"),
        (7_200_000_000_000, "2h"),
        (1_500_000, "1.5ms"),
        (12, "12ns"),
        (-1_500_000_000, "-1.5s"),
    ],
)
def test_duration_is_written_short(ns: int, text: str) -> None:
    assert format_duration(ns) == text


@pytest.mark.parametrize(
    ("text", "per_s"),
    [("20/s", 20.0), ("1200/min", 20.0), ("1200/m", 20.0), ("3600/h", 1.0), (" 0.5 / s ", 0.5)],
)
def test_rate_is_per_second(text: str, per_s: float) -> None:
    assert parse_rate(text) == pytest.approx(per_s)


@pytest.mark.parametrize(
    ("text", "mend"), [("20", "write 20/s"), ("20/day", "per s, min or h"), ("fast", "20/s")]
)
def test_bad_rate_says_what_to_write(text: str, mend: str) -> None:
    with pytest.raises(InputError, match=mend):
        parse_rate(text)


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_formatted_rate_reads_back(per_s: float) -> None:
    assert parse_rate(format_rate(per_s)) == per_s
    assert float(format_number(per_s)) == per_s


@pytest.mark.parametrize(
    ("text", "count"), [("512", 512), ("10_000", 10_000), ("32req", 32), ("1 request", 1)]
)
def test_count_is_a_whole_number(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "1.5", "-1", "many", "_1"])
def test_bad_count_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="whole number"):
        parse_count(text)

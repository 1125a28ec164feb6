from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.app import load_config
from tokenweir.core.errors import ConfigError
from tokenweir.runtime.settings import bytes_of

GIB = 1 << 30


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("12GiB", 12 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("800MB", 800_000_000),
        ("64kib", 65_536),
        ("2TB", 2 * 10**12),
        ("1048576", 1_048_576),
        ("7 B", 7),
        ("0.8", 800),
        ("1.0", 1000),
    ],
)
def test_an_amount_of_memory_is_a_number_with_a_unit_or_a_share(amount: str, expected: int) -> None:
    assert bytes_of(amount, 1000) == expected


@pytest.mark.parametrize("amount", ["", "much", "1.5", "-1GiB", "12 GiBs", "80%", "1e9"])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    with pytest.raises(ConfigError):
        bytes_of(amount, 1000)


@given(st.floats(0, 1).map(lambda share: f"{share:.4f}"), st.integers(0, 1 << 50))
def test_a_share_is_never_more_than_the_whole(share: str, total: int) -> None:
    assert 0 <= bytes_of(share, total) <= total


def test_models_come_as_tables_with_their_own_choices(tmp_path: Path) -> None:
    file = tmp_path / "weir.toml"
    file.write_text(
        """
        [runtime]
        memory_limit = "2GiB"
        idle_ttl = "10m"
        engine_options = { persist_prefixes = true }

        [[runtime.models]]
        path = "models/reed"

        [[runtime.models]]
        name = "quick"
        path = "models/reed"
        weight_bits = 4
        draft = "models/sprout"
        scheduler = "bypass"
        """,
        encoding="utf-8",
    )
    runtime = load_config(file).runtime
    assert [one.called for one in runtime.models] == ["reed", "quick"]
    assert runtime.models[1].scheduler == "bypass"
    assert runtime.idle_ttl == 600_000_000_000
    assert runtime.engine_options == {"persist_prefixes": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('memory_limit = "lots"', "no amount of memory"),
        ('process_limit = "1.2"', "more than the whole"),
        ('[[runtime.models]]\npath = "/a"\n[[runtime.models]]\npath = "/b/a"', "two models are named 'a'"),
        ('[[runtime.models]]\npath = "/a"\nweight_bits = 5', "should be 4 or 8, not 5"),
        ('[[runtime.models]]\nname = "x"', "path: is missing"),
        ('stall_timeout = "5"', "has no unit"),
        ("api_key = 'weir_secret'", "named, not written down"),
        ("mem_limit = '1GiB'", "did you mean"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "weir.toml"
    file.write_text(f"[runtime]\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load_config(file)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import InputError
from tokenweir.core.slo import SLO_TAGS, Slo, parse_slo


def test_limits_are_in_ns_by_tag() -> None:
    assert parse_slo("ttft=200ms, tpot=25ms").limits_ns == {"tpot": 25_000_000, "ttft": 200_000_000}
    assert parse_slo("") == Slo({})


@given(st.dictionaries(st.sampled_from(SLO_TAGS), st.integers(0, 10**15)))
def test_text_reads_back(limits: dict[str, int]) -> None:
    slo = Slo(dict(sorted(limits.items())))
    assert parse_slo(slo.text) == slo


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tfft=200ms", "did you mean ttft?"),
        ("TTFT=200ms", "did you mean ttft?"),
        ("zzz=1s", "the metrics are"),
        ("itl=20ms", "use itl_request"),
        ("ttft", "write ttft=200ms"),
        ("ttft=200", "--slo ttft 200 has no unit; write 200s, 200ms or 200m"),
        ("ttft=1s,ttft=2s", "twice"),
    ],
)
def test_bad_limit_says_how_to_mend_it(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        parse_slo(text)

"""Numbers and orders as a query writes them."""

from __future__ import annotations

import pytest

from tokenweir.core.errors import ParameterError
from tokenweir.gateway.doors.queries import newest_first, page_limit, whole_number


@pytest.mark.parametrize("text", ["", "0", "101", "-1", "1.0", "+5", "\u0663", "000000001999", "9" * 5_000])
def test_what_is_no_number_of_the_range_is_none(text: str) -> None:
    assert whole_number(text, least=1, most=100) is None
    with pytest.raises(ParameterError, match="is not 1 to 100"):
        page_limit(text, default=20, most=100)


def test_a_number_may_stand_at_the_ends_of_its_range() -> None:
    assert [whole_number(text, least=1, most=100) for text in ("1", "007", "100")] == [1, 7, 100]
    assert page_limit(None, default=20, most=100) == 20


def test_the_newest_come_first_unless_told_otherwise() -> None:
    assert newest_first(None)
    assert newest_first("desc")
    assert not newest_first("asc")
    with pytest.raises(ParameterError, match="is not asc or desc"):
        newest_first("")

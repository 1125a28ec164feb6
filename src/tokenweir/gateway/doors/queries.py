"""What a route's query asks for, and the page of a list that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast
from urllib.parse import parse_qs

from tokenweir.asgi.call import Call
from tokenweir.core.errors import InputError, ParameterError
from tokenweir.core.ids import parse_id
from tokenweir.core.requests import Json

_DIGITS: Final = 18
"""More than any number here has. Reading thousands of them is refused by Python itself."""


def query(call: Call, *known: str) -> dict[str, str]:
    """Return the query's fields. Raises ParameterError for one that is unknown or comes twice."""
    try:
        fields = parse_qs(call.query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(call.query))
    except ValueError as error:
        raise ParameterError(f"the query cannot be read: {error}", param="query") from error
    for name, values in fields.items():
        if name not in known:
            raise ParameterError(
                f"the query has the unknown field {name!r}",
                param=name,
                mend=f"it may have {', '.join(known)}",
            )
        if len(values) > 1:
            raise ParameterError(f"the query has {name!r} twice", param=name, mend="give it once")
    return {name: values[0] for name, values in fields.items()}


def whole_number(text: str, *, least: int, most: int) -> int | None:
    """Return a number written in digits; ``None`` for any other text, and for one that is out of range."""
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        return None
    number = int(text)
    return number if least <= number <= most else None


def page_limit(text: str | None, *, default: int, most: int) -> int:
    """Return how many a page may have. Raises ParameterError."""
    if text is None:
        return default
    limit = whole_number(text, least=1, most=most)
    if limit is None:
        raise ParameterError(f"the limit {text[:20]!r} is not 1 to {most}", param="limit")
    return limit


def newest_first(text: str | None) -> bool:
    """Return in which order a list is asked for; newest first unless told otherwise. Raises ParameterError."""
    if text not in {None, "asc", "desc"}:
        raise ParameterError(f"the order {(text or '')[:20]!r} is not asc or desc", param="order")
    return text != "asc"


def page_after(text: str | None, prefix: str) -> bytes | None:
    """Return the id that a page begins behind. Raises ParameterError."""
    if text is None:
        return None
    try:
        return parse_id(text, prefix=prefix).uuid.to_bytes(16, "big")
    except InputError as error:
        raise ParameterError(
            f"{text[:80]!r} is no id", param="after", mend="give last_id of the page before"
        ) from error


def page(data: Sequence[dict[str, Json]], *, more: bool) -> dict[str, Json]:
    """Return a page of a list as OpenAI shows it."""
    return {
        "object": "list",
        "data": cast("Json", data),
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }

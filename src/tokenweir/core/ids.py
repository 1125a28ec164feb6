"""Identifiers: a prefix that says what is named, and a UUIDv7 in Crockford's letters; they sort by time."""

from __future__ import annotations

import re
import secrets
import time
from functools import cache
from typing import Final, NamedTuple

from tokenweir.core.errors import InputError

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES: Final = {
    **{letter: value for value, letter in enumerate(_ALPHABET)},
    **{letter.lower(): value for value, letter in enumerate(_ALPHABET)},
    **dict.fromkeys("oO", 0),
    **dict.fromkeys("iIlL", 1),
}
_LENGTH: Final = 26
# Two letters at a time: every request has an id, and half the steps are half the time.
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_SHIFTS: Final = tuple(range(120, -1, -10))
_PREFIX: Final = re.compile(r"[a-z]{2,12}")
_RANDOM_BITS: Final = 62
_VERSION: Final = 7
_VARIANT: Final = 0b10


class Id(NamedTuple):
    """A parsed identifier. ``uuid`` is the 128-bit value, ``at`` its creation in Unix ns, to about 244 ns."""

    prefix: str
    uuid: int
    at: int

    @property
    def text(self) -> str:
        """The canonical text, upper case after the prefix."""
        return format_id(self.prefix, self.uuid)


def new_id(prefix: str) -> str:
    """Return a new identifier such as ``run_01K9Z…``; later ones sort after earlier ones of this clock."""
    return format_id(prefix, uuid7(time.time_ns(), secrets.randbits(_RANDOM_BITS)))


def uuid7(at: int, random: int) -> int:
    """Return the UUIDv7 of the Unix ns ``at`` with the low 62 bits of ``random``.

    The 12 bits after the version hold the fraction of the millisecond. Source: RFC 9562, sections 5.7 and
    6.2, method 3.
    """
    ms, rest = divmod(at, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    high = ((ms & (2**48 - 1)) << 16) | (_VERSION << 12) | fraction
    return (high << 64) | (_VARIANT << _RANDOM_BITS) | (random & (2**_RANDOM_BITS - 1))


def format_id(prefix: str, uuid: int) -> str:
    """Return ``prefix``, an underscore and 26 Crockford characters. Raises InputError."""
    _check(prefix)
    if not 0 <= uuid < 2**128:
        raise InputError(f"{uuid!r} is no 128-bit value")
    return f"{prefix}_{''.join([_PAIRS[(uuid >> shift) & 1023] for shift in _SHIFTS])}"


@cache
def _check(prefix: str) -> None:
    if _PREFIX.fullmatch(prefix) is None:
        raise InputError(f"the prefix {prefix!r} is not 2 to 12 lower-case letters")


def parse_id(text: str, *, prefix: str | None = None) -> Id:
    """Read an identifier, in either case, with O for 0 and I or L for 1.

    ``prefix`` is the one it must have. Raises InputError for anything that is no identifier of a UUIDv7.
    """
    name, _, letters = text.partition("_")
    if prefix is not None and name != prefix:
        raise InputError(f"{text!r} does not start with {prefix}_")
    if (
        _PREFIX.fullmatch(name) is None
        or len(letters) != _LENGTH
        or not all(map(_VALUES.__contains__, letters))
    ):
        raise InputError(
            f"{text!r} is no identifier",
            mend=f"it looks like {prefix or 'run'}_ and {_LENGTH} letters and digits",
        )
    uuid = 0
    for letter in letters:
        uuid = (uuid << 5) | _VALUES[letter]
    if uuid >> 128 or (uuid >> 76) & 15 != _VERSION or (uuid >> _RANDOM_BITS) & 3 != _VARIANT:
        raise InputError(f"{text!r} holds no UUIDv7")
    fraction = (uuid >> 64) & 0xFFF
    # Rounding up gives back an instant that makes the same fraction again.
    at = (uuid >> 80) * 1_000_000 + -(-fraction * 1_000_000 // 4096)
    return Id(name, uuid, at)

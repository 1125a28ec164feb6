"""Canonical JSON: one byte sequence per value, so that equal values have equal hashes.

Source: RFC 8785, JSON Canonicalization Scheme; numbers as ECMAScript writes them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Final, cast

import msgspec

from tokenweir.core.errors import SpecError

MAX_INTEGER: Final = 2**53 - 1
"""The largest magnitude of an integer that every reader of JSON keeps exactly."""

_PLAIN_DIGITS: Final = 21
_PLAIN_ZEROS: Final = 6

_ESCAPES: Final = {
    **{chr(code): f"\\u{code:04x}" for code in range(0x20)},
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
    '"': '\\"',
    "\\": "\\\\",
}
_TO_ESCAPE: Final = re.compile(r'[\x00-\x1f"\\]')


def canonical_json(value: object) -> bytes:
    """Return the RFC 8785 bytes of ``value``: JSON values, tuples as arrays, msgspec structs as objects.

    Raises SpecError, naming the value, for NaN, infinities, integers beyond ±(2^53 - 1), lone surrogates,
    keys that are no text and types that JSON does not have.
    """
    parts: list[str] = []
    _write(value, parts)
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError as error:
        raise SpecError(
            f"text with a lone surrogate has no UTF-8: {error.object[error.start : error.end]!r}",
            mend="remove it",
        ) from error


def canonical_hash(value: object) -> str:
    """Return the SHA-256, lower-case hex, of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _write(value: object, parts: list[str]) -> None:
    match value:
        case None:
            parts.append("null")
        case bool():
            parts.append("true" if value else "false")
        case str():
            parts.append(_string(value))
        case int():
            parts.append(_integer(value))
        case float():
            parts.append(_float(value))
        case list() | tuple():
            _array(cast("list[object]", value), parts)
        case Mapping():
            _object(cast("Mapping[object, object]", value), parts)
        case msgspec.Struct():
            _write(msgspec.to_builtins(value), parts)
        case _:
            raise SpecError(f"{value!r} of type {type(value).__name__} is no JSON value")


def _array(values: list[object], parts: list[str]) -> None:
    mark = "["
    for value in values:
        parts.append(mark)
        _write(value, parts)
        mark = ","
    parts.append("]" if values else "[]")


def _object(values: Mapping[object, object], parts: list[str]) -> None:
    for key in values:
        if not isinstance(key, str):
            raise SpecError(f"the key {key!r} is no text")
    names = sorted(cast("Mapping[str, object]", values), key=_utf16)
    mark = "{"
    for name in names:
        parts.append(f"{mark}{_string(name)}:")
        _write(values[name], parts)
        mark = ","
    parts.append("}" if names else "{}")


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-be", errors="surrogatepass")


def _string(text: str) -> str:
    return f'"{_TO_ESCAPE.sub(lambda match: _ESCAPES[match[0]], text)}"'


def _integer(value: int) -> str:
    if abs(value) > MAX_INTEGER:
        raise SpecError(
            f"the integer {value} is beyond ±(2^53 - 1), which JSON readers may round",
            mend="write it as text",
        )
    return str(int(value))


def _float(value: float) -> str:
    """Write a double as ECMAScript's Number::toString does.

    Formula: the shortest digits that read back the same; plain notation for 1e-6 ≤ |x| < 1e21, else exponent.
    """
    if not math.isfinite(value):
        raise SpecError(f"{value!r} is no JSON number", mend="use null or text for it")
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{float(value)!r}e0".partition("e")
    sign = "-" if value < 0 else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    digits = (whole + fraction).lstrip("0")
    # The value is 0.digits times ten to the power of point.
    power = int(exponent.partition("e")[0])
    point = power + len(whole) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= _PLAIN_DIGITS:
        return sign + digits.ljust(point, "0")
    if 0 < point <= _PLAIN_DIGITS:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -_PLAIN_ZEROS < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1:+d}"

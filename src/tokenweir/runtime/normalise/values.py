"""Reading one value of a body: its type and range, or an error that names the field as the client wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tokenweir.core.errors import InputError, ParameterError
from tokenweir.core.requests import Json
from tokenweir.core.units import parse_duration
from tokenweir.runtime.normalise.names import Given, short

_NS_PER_S = 1_000_000_000


class Values:
    """What a body says, read field by field. A field that is absent reads as ``None``."""

    __slots__ = ("_given",)

    def __init__(self, given: Mapping[str, Given]) -> None:
        self._given = given

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def spelling(self, name: str) -> str:
        """Return the name that the client used for an option, or the canonical one."""
        given = self._given.get(name)
        return name if given is None else given.spelling

    def raw(self, name: str) -> Json:
        """Return the value as it came."""
        given = self._given.get(name)
        return None if given is None else given.value

    def number(self, name: str, low: float, high: float, *, off: float | None = None) -> float | None:
        """Return a number of ``low`` to ``high``. ``false`` reads as ``off`` where there is such a value."""
        value = self.raw(name)
        if value is False and off is not None:
            return off
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, "a number")
        if not low <= value <= high:
            raise self.wrong(name, f"from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number of ``low`` to ``high``; ``20.0`` counts as one."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        if not low <= value <= high:
            raise self.wrong(name, f"from {low} to {high}")
        return value

    def boolean(self, name: str) -> bool | None:
        """Return true or false."""
        value = self.raw(name)
        if value is None or isinstance(value, bool):
            return value
        raise self.wrong(name, "true or false")

    def text(self, name: str) -> str | None:
        """Return text."""
        value = self.raw(name)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(name, "text")

    def table(self, name: str) -> Mapping[str, Json] | None:
        """Return an object."""
        value = self.raw(name)
        if value is None or isinstance(value, dict):
            return value
        raise self.wrong(name, "an object")

    def choice(self, name: str, *names: str) -> str | None:
        """Return one of ``names``."""
        value = self.raw(name)
        if value is None or (isinstance(value, str) and value in names):
            return value
        raise self.wrong(name, "one of " + ", ".join(map(repr, names)))

    def duration_ns(self, name: str) -> int | None:
        """Return nanoseconds from seconds (a number) or a duration with its unit (``"1.5s"``)."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                found = parse_duration(value)
            except InputError as error:
                raise self.wrong(name, "seconds, or a duration such as '1.5s'") from error
        else:
            found = int((self.number(name, 0, 1e9) or 0) * _NS_PER_S)
        if found <= 0:
            raise self.wrong(name, "longer than nothing")
        return found

    def wrong(self, name: str, wanted: str) -> ParameterError:
        """Return the error for a value that is not what it should be."""
        spelling = self.spelling(name)
        return ParameterError(
            f"{spelling!r} is {short(self.raw(name))}", param=spelling, mend=f"it must be {wanted}"
        )

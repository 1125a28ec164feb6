"""What a metric is. Each tag of ``docs/formats.md`` has one small file beside this one.

Columns are float64 arrays of one length, one element per request, with **NaN for null**. Arithmetic then carries
"unknown" along by itself and needs no masks; a time in nanoseconds since the run's start stays a whole number,
exactly, for 104 days (2^53 ns).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
Columns: TypeAlias = Mapping[str, FloatArray]

Direction = Literal["lower", "higher", "none"]
Kind = Literal["request", "pooled", "rate"]

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quantity with its one definition.

    ``kind`` is ``request`` (one value per request), ``pooled`` (many values per request, such as gaps) or ``rate``
    (one value per measured window). ``needs`` names the columns that ``formula`` reads. Its values are
    nanoseconds where ``unit`` is ms, else they are in ``unit``: see :attr:`scale`.
    """

    tag: str
    title: str
    unit: Literal["ms", "tokens", "tokens/s", "requests/s", "ratio"]
    direction: Direction
    kind: Kind
    definition: str
    source: str
    needs: tuple[str, ...] = ()
    formula: Callable[[Columns], FloatArray] | None = None

    @property
    def scale(self) -> float:
        """What a value is divided by to give ``unit``."""
        return NS_PER_MS if self.unit == "ms" else 1

    def values(self, columns: Columns) -> FloatArray:
        """Return one value per request, NaN where the metric is undefined. Reads no column but ``needs``.

        Raises:
            TypeError: the metric has no value per request.
        """
        if self.formula is None:
            message = f"{self.tag!r} has no value per request: it is {self.kind}"
            raise TypeError(message)
        return self.formula(columns)


def between(start: str, end: str) -> Callable[[Columns], FloatArray]:
    """Return a formula for the time from one column to another."""

    def difference(columns: Columns) -> FloatArray:
        return columns[end] - columns[start]

    return difference

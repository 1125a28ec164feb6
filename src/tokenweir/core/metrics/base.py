"""What a metric is. Each tag of ``docs/formats.md`` has one small file beside this one.

Columns are float64 arrays of one length, one element per request, with **NaN for null**. Arithmetic then
carries "unknown" along by itself and needs no masks; a time in nanoseconds since the run's start stays a
whole number, exactly, for 104 days (2^53 ns).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
Columns: TypeAlias = Mapping[str, FloatArray]

Direction = Literal["lower", "higher", "none"]
Kind = Literal["request", "pooled", "rate"]
Unit = Literal["ms", "tokens", "tokens/s", "requests/s", "ratio"]

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000
NAN: Final = math.nan
NEVER: Final = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What rates are made of. ``good`` is ``None`` where no SLO is stated.

    ``completed``, ``good`` and the tokens were received inside the window of ``window_s`` seconds;
    ``measured`` counts the requests of the measured phase and ``failed`` those of them that failed.
    """

    window_s: float
    completed: int
    good: int | None
    input_tokens: float
    output_tokens: int
    measured: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A quantity with its one definition.

    ``kind`` is ``request`` (one value per request, by ``formula`` from the columns ``needs``), ``pooled``
    (many values per request, such as gaps) or ``rate`` (one value per measured window, by ``rate``). Values
    are nanoseconds where ``unit`` is ms, else they are in ``unit``: see :attr:`scale`. ``if_failed`` is the
    value of a failed request when failures count as infinitely slow; ``None``: it has none even then.
    """

    tag: str
    title: str
    unit: Unit
    direction: Direction
    kind: Kind
    definition: str
    source: str
    needs: tuple[str, ...] = ()
    if_failed: float | None = None
    formula: Callable[[Columns], FloatArray] | None = None
    rate: Callable[[Totals], float] | None = None

    @property
    def scale(self) -> int:
        """What a value is divided by to give ``unit``."""
        return NS_PER_MS if self.unit == "ms" else 1

    def values(self, columns: Columns) -> FloatArray:
        """Return one value per request, NaN where the metric is undefined. Reads no column but ``needs``.

        Raises:
            TypeError: the metric has no value per request.
        """
        if self.formula is None:
            message = f"{self.tag!r} has no value per request: its kind is {self.kind!r}"
            raise TypeError(message)
        return self.formula(columns)


def between(start: str, end: str) -> Callable[[Columns], FloatArray]:
    """Return the formula ``end − start``, for two columns of times."""

    def difference(columns: Columns) -> FloatArray:
        return columns[end] - columns[start]

    return difference


def same(name: str) -> Callable[[Columns], FloatArray]:
    """Return the formula that takes a column as it stands."""

    def column(columns: Columns) -> FloatArray:
        return columns[name]

    return column


def defined(condition: npt.NDArray[np.bool_], values: FloatArray) -> FloatArray:
    """Return the values where the condition holds, NaN elsewhere."""
    return np.where(condition, values, np.nan)

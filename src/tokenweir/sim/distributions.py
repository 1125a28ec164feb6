"""Distributions as people write them, drawn once into a table that the hot path only indexes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import msgspec

from tokenweir.core.errors import ConfigError, InputError
from tokenweir.core.units import parse_duration

TABLE_BITS: Final = 14
"""A table holds 2**14 draws; a constant holds one."""

_MEND: Final = (
    "write constant:50ms, uniform:50ms..70ms, normal:MEAN,SD, lognormal:MEDIAN,SIGMA, gamma:MEAN,CV "
    "or exponential:MEAN"
)


class Table(msgspec.Struct, frozen=True):
    """Seeded draws of one distribution: ``values[i & mask]`` is the draw at position ``i``."""

    values: tuple[int, ...]
    mask: int
    mean: float

    @property
    def constant(self) -> int | None:
        """The one value there is, if there is only one."""
        return self.values[0] if self.mask == 0 else None

    def total(self, start: int, count: int) -> int:
        """Return the sum of ``count`` draws from position ``start`` on."""
        if self.mask == 0:
            return self.values[0] * count
        rounds, rest = divmod(count, self.mask + 1)
        whole = sum(self.values) * rounds if rounds else 0
        first = start & self.mask
        return whole + sum((self.values[first:] + self.values[:first])[:rest])


def durations(text: str, *, what: str, seed: int) -> Table:
    """Return a table of nanoseconds, none negative. Raises ConfigError for what is no distribution."""
    return _table(text, what, seed, floor=0, number=lambda part: parse_duration(part, what=what))


def counts(text: str, *, what: str, seed: int) -> Table:
    """Return a table of whole numbers, each at least 1. Raises ConfigError for what is no distribution."""
    return _table(text, what, seed, floor=1, number=_plain)


def geometric(probability: float, *, seed: int) -> Table:
    """Return a table of lengths until an event that ends each step with ``probability``; each at least 1."""
    rng = random.Random(f"eos:{seed}")
    scale = math.log1p(-probability) if probability < 1 else -math.inf
    return _drawn(lambda: 1 + math.log(1.0 - rng.random()) / scale, floor=1, whole=math.floor)


def _table(text: str, what: str, seed: int, *, floor: int, number: Callable[[str], float]) -> Table:
    name, colon, rest = text.strip().partition(":")
    if not colon:
        name, rest = "constant", name
    parts = [part.strip() for part in (rest.split("..") if name == "uniform" else rest.split(","))]
    try:
        if name == "constant" and len(parts) == 1:
            value = max(floor, round(number(parts[0])))
            return Table((value,), 0, float(value))
        draw = _sampler(name, parts, random.Random(f"{what}:{seed}"), number)
    except InputError as error:
        raise ConfigError(f"{what} {text!r} is no distribution: {error.message}", mend=_MEND) from None
    except ValueError as error:
        raise ConfigError(f"{what} {text!r} is no distribution: {error}", mend=_MEND) from None
    return _drawn(draw, floor=floor, whole=round)


def _drawn(draw: Callable[[], float], *, floor: int, whole: Callable[[float], int]) -> Table:
    values = tuple(max(floor, whole(draw())) for _ in range(1 << TABLE_BITS))
    return Table(values, len(values) - 1, sum(values) / len(values))


def _sampler(
    name: str, parts: list[str], rng: random.Random, number: Callable[[str], float]
) -> Callable[[], float]:
    if name == "exponential" and len(parts) == 1:
        mean = number(parts[0])
        return lambda: rng.expovariate(1.0) * mean
    if len(parts) != _PAIR:
        raise ValueError(f"{name} does not take {len(parts)} values")
    first = number(parts[0])
    match name:
        case "uniform":
            last = number(parts[1])
            if last < first:
                raise ValueError("the upper bound is below the lower one")
            return lambda: rng.uniform(first, last)
        case "normal":
            deviation = number(parts[1])
            return lambda: rng.gauss(first, deviation)
        case "lognormal":
            sigma = _plain(parts[1])
            return lambda: first * math.exp(rng.gauss(0.0, sigma))
        case "gamma":
            shape = 1.0 / _plain(parts[1]) ** 2
            return lambda: rng.gammavariate(shape, first / shape)
        case _:
            raise ValueError(f"{name!r} is not known")


_PAIR: Final = 2


def _plain(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text!r} is not above zero")
    return value

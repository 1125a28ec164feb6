"""Scenarios: how many tokens go in and come out, in genai-bench's notation.

::

    D(in,out)              every request the same
    N(mean,sd)/(mean,sd)   normal, input / output
    U(lo,hi)/(lo,hi)       uniform whole numbers, both bounds possible
    E(n)                   embeddings of n tokens
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.core.errors import SpecError
from tokenweir.core.seeds import generator
from tokenweir.core.units import format_number

MAX_TOKENS: Final = 10_000_000
"""No length above this is accepted: it is a slip."""

_NUMBER: Final = r"\s*(\d+(?:\.\d+)?)\s*"
_PAIR: Final = rf"\({_NUMBER},{_NUMBER}\)"
_FIXED: Final = re.compile(rf"\s*D\s*{_PAIR}\s*")
_NORMAL: Final = re.compile(rf"\s*N\s*{_PAIR}\s*/\s*{_PAIR}\s*")
_UNIFORM: Final = re.compile(rf"\s*U\s*{_PAIR}\s*/\s*{_PAIR}\s*")
_EMBEDDING: Final = re.compile(rf"\s*E\s*\({_NUMBER}\)\s*")


class Lengths(msgspec.Struct, frozen=True):
    """Drawn lengths in tokens, int32, one per sample. ``output_tokens`` is empty for embeddings."""

    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]


class Fixed(msgspec.Struct, frozen=True):
    """``D(in,out)``: the same lengths for every request."""

    input: int
    output: int

    @property
    def text(self) -> str:
        """The canonical notation."""
        return f"D({self.input},{self.output})"


class Normal(msgspec.Struct, frozen=True):
    """``N(mean,sd)/(mean,sd)``: normal lengths, rounded; one below 1 is drawn again."""

    input_mean: float
    input_sd: float
    output_mean: float
    output_sd: float

    @property
    def text(self) -> str:
        """The canonical notation."""
        means_and_sds = (self.input_mean, self.input_sd, self.output_mean, self.output_sd)
        input_mean, input_sd, output_mean, output_sd = map(format_number, means_and_sds)
        return f"N({input_mean},{input_sd})/({output_mean},{output_sd})"


class Uniform(msgspec.Struct, frozen=True):
    """``U(lo,hi)/(lo,hi)``: every whole length from lo to hi with equal chance."""

    input_lo: int
    input_hi: int
    output_lo: int
    output_hi: int

    @property
    def text(self) -> str:
        """The canonical notation."""
        return f"U({self.input_lo},{self.input_hi})/({self.output_lo},{self.output_hi})"


class Embedding(msgspec.Struct, frozen=True):
    """``E(n)``: texts of n tokens to embed."""

    input: int

    @property
    def text(self) -> str:
        """The canonical notation."""
        return f"E({self.input})"


Scenario: TypeAlias = Fixed | Normal | Uniform | Embedding


def parse_scenario(text: str) -> Scenario:
    """Read a scenario. Raises SpecError for another notation or impossible lengths."""
    if match := _FIXED.fullmatch(text):
        return Fixed(*(_tokens(text, number) for number in match.groups()))
    if match := _NORMAL.fullmatch(text):
        input_mean, input_sd, output_mean, output_sd = map(float, match.groups())
        for mean in (input_mean, output_mean):
            _bounds(text, mean)
        for sd in (input_sd, output_sd):
            _bounds(text, sd, least=0)
        return Normal(input_mean, input_sd, output_mean, output_sd)
    if match := _UNIFORM.fullmatch(text):
        input_lo, input_hi, output_lo, output_hi = (_tokens(text, number) for number in match.groups())
        if input_lo > input_hi or output_lo > output_hi:
            raise SpecError(
                f"--scenario {text} has a lower bound above its upper bound", mend="write U(lo,hi)/(lo,hi)"
            )
        return Uniform(input_lo, input_hi, output_lo, output_hi)
    if match := _EMBEDDING.fullmatch(text):
        return Embedding(_tokens(text, match[1]))
    if text.strip().startswith("I"):
        raise SpecError(f"--scenario {text}: images are not supported yet", mend="use D, N, U or E")
    raise SpecError(
        f"--scenario {text!r} is no scenario",
        mend="write D(128,64), N(128,32)/(64,16), U(64,256)/(16,64) or E(128)",
    )


def draw_lengths(scenario: Scenario, count: int, *, seed: int) -> Lengths:
    """Return ``count`` pairs of lengths; fewer with the same seed are the beginning of more."""
    none = np.empty(0, dtype=np.int32)
    match scenario:
        case Fixed():
            return Lengths(_same(scenario.input, count), _same(scenario.output, count))
        case Embedding():
            return Lengths(_same(scenario.input, count), none)
        case Normal():
            return Lengths(
                _normal(generator(seed, "input lengths"), scenario.input_mean, scenario.input_sd, count),
                _normal(generator(seed, "output lengths"), scenario.output_mean, scenario.output_sd, count),
            )
        case Uniform():
            return Lengths(
                _uniform(generator(seed, "input lengths"), scenario.input_lo, scenario.input_hi, count),
                _uniform(generator(seed, "output lengths"), scenario.output_lo, scenario.output_hi, count),
            )


def _same(length: int, count: int) -> npt.NDArray[np.int32]:
    return np.full(count, length, dtype=np.int32)


def _uniform(rng: np.random.Generator, lo: int, hi: int, count: int) -> npt.NDArray[np.int32]:
    # Scaled doubles keep the beginning of the stream the same whatever the count; integers() need not.
    return (lo + np.floor(rng.random(count) * (hi - lo + 1))).astype(np.int32)


def _normal(rng: np.random.Generator, mean: float, sd: float, count: int) -> npt.NDArray[np.int32]:
    kept = np.empty(0)
    while kept.size < count:
        drawn = np.rint(rng.normal(mean, sd, max(count - kept.size, 1)))
        kept = np.concatenate([kept, drawn[(drawn >= 1) & (drawn <= MAX_TOKENS)]])
    return kept.astype(np.int32)


def _tokens(text: str, number: str) -> int:
    value = float(number)
    if not value.is_integer():
        raise SpecError(f"--scenario {text} has {number}, which is no whole number of tokens")
    _bounds(text, value)
    return int(value)


def _bounds(text: str, value: float, *, least: int = 1) -> None:
    if not least <= value <= MAX_TOKENS:
        raise SpecError(f"--scenario {text} has {value:g}, which is not between {least} and {MAX_TOKENS}")

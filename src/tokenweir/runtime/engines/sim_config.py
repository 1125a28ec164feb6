"""The files of a simulated model: a directory whose ``config.json`` says what to pretend.

::

    {
        "architecture": "sim",
        "context_tokens": 4096,
        "ttft": "50ms",
        "itl": "normal:20ms,2ms",
        "replies": [{"when": "two and two", "text": "<think>easy</think>Four."}],
        "faults": [{"kind": "kill", "when": "crash now", "after_tokens": 3}],
    }

Only ``architecture`` must be there. A distribution is ``constant:V``, ``uniform:LO..HI``, ``normal:MEAN,SD`` or
``exponential:MEAN``; a plain value is a constant.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from tokenweir.core.errors import InputError
from tokenweir.core.units import parse_duration
from tokenweir.ports.inference import Capability

FILE: Final = "config.json"
MIN_VOCABULARY: Final = 512
"""Size of the simulator's own vocabulary; a larger one leaves the rest unused."""

_MEND: Final = "write constant:50ms, uniform:50ms..70ms, normal:MEAN,SD or exponential:MEAN"

FaultKind = Literal["abort", "kill", "stall", "memory", "error", "broken", "leak", "slow_load", "load_memory"]


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to answer to a prompt whose text holds ``when``; an empty ``when`` holds always. The first one wins."""

    text: str
    when: str = ""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that goes wrong: for a prompt that holds ``when``, once ``after_tokens`` have been drawn for it.

    ``abort`` and ``kill`` end the process, ``stall`` lets a step take ``duration``, ``memory`` raises MemoryError in
    a step, ``error`` RuntimeError, ``broken`` ends one sequence, ``leak`` takes ``bytes`` and keeps them.
    ``slow_load`` takes ``duration`` to load, ``load_memory`` refuses to.
    """

    kind: FaultKind
    when: str = ""
    after_tokens: int = 0
    duration: str = "0s"
    bytes: int = 0


class SimConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a simulated model is.

    ``ttft`` is the time of the step that ends a prompt's prefill, ``prefill`` is added for each token that was not
    cached, ``itl`` is the time of a decoding step. ``output_tokens`` is how long an answer is that nobody cuts.
    ``capabilities`` are the card's unless stated.
    """

    architecture: Literal["sim"]
    context_tokens: int = 8192
    vocabulary: int = MIN_VOCABULARY
    weights_bytes: int = 0
    kv_bytes_per_token: int = 1024
    ttft: str = "0s"
    prefill: str = "0s"
    itl: str = "0s"
    output_tokens: str = "uniform:16..48"
    embedding_dimensions: int = 64
    seed: int = 0
    replies: tuple[Reply, ...] = ()
    faults: tuple[Fault, ...] = ()
    capabilities: tuple[Capability, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no model can have."""
        for name, least in (
            ("context_tokens", 2),
            ("vocabulary", MIN_VOCABULARY),
            ("weights_bytes", 0),
            ("kv_bytes_per_token", 0),
            ("embedding_dimensions", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is below {least}")


def read(directory: str) -> SimConfig:
    """Return what the directory says.

    Raises:
        InputError: there is no such file, or it says something unknown; the message names file and field.
    """
    path = Path(directory) / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=SimConfig)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", mend="name a model's directory") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} does not describe a simulated model: {error}", mend="see docs/engines.md"
        ) from None


def durations(text: str, *, what: str, seed: int) -> Callable[[], int]:
    """Return what draws nanoseconds, none negative. Raises InputError for what is no distribution."""
    return _draws(text, what, random.Random(f"{what}:{seed}"), lambda one: parse_duration(one, what=what), 0)


def counts(text: str, *, what: str, seed: str) -> int:
    """Return one whole number, at least 1. Raises InputError for what is no distribution."""
    return _draws(text, what, random.Random(seed), _number, 1)()


def _draws(
    text: str, what: str, rng: random.Random, number: Callable[[str], float], least: int
) -> Callable[[], int]:
    name, colon, rest = text.strip().partition(":")
    if not colon:
        name, rest = "constant", name
    try:
        values = [number(part.strip()) for part in rest.split(".." if name == "uniform" else ",")]
    except (InputError, ValueError) as error:
        raise InputError(f"{what} {text!r} is no distribution: {error}", mend=_MEND) from None
    match name, values:
        case "constant", [value]:
            fixed = max(least, round(value))
            return lambda: fixed
        case "uniform", [low, high] if low <= high:
            return lambda: max(least, round(rng.uniform(low, high)))
        case "normal", [mean, deviation]:
            return lambda: max(least, round(rng.gauss(mean, deviation)))
        case "exponential", [mean] if mean > 0:
            return lambda: max(least, round(rng.expovariate(1.0) * mean))
        case _:
            raise InputError(f"{what} {text!r} is no distribution", mend=_MEND)


def _number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{text!r} is not a count")
    return value

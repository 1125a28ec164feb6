"""Which models must go so that another fits. Sans-IO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tokenweir.core.errors import NoMemoryError, UnavailableError
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.scheduling.budget import text

_RETRY_AFTER_NS: Final = 5_000_000_000


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory: ``used_ns`` is when it was used last, ``users`` how many use it now."""

    name: str
    weights_bytes: int
    used_ns: int
    users: int = 0


def victims(
    card: ModelCard,
    residents: Sequence[Resident],
    *,
    limit_bytes: int,
    reserved_bytes: int,
    taken_bytes: int = 0,
) -> list[str]:
    """Return the models to unload, least recently used first and none in use, so that ``card``'s weights fit.

    ``reserved_bytes`` are set aside for the prefix cache, ``taken_bytes`` reserved by running requests.

    Raises:
        NoMemoryError: it fits in no case; the message holds the arithmetic.
        UnavailableError: it will fit once the requests that run now are done.
    """
    room = limit_bytes - reserved_bytes
    held = sum(one.weights_bytes for one in residents) + taken_bytes
    chosen: list[str] = []
    for one in sorted(residents, key=lambda resident: resident.used_ns):
        if held + card.weights_bytes <= room:
            break
        if not one.users:
            chosen.append(one.name)
            held -= one.weights_bytes
    if held + card.weights_bytes <= room:
        return chosen
    parts = [f"{text(card.weights_bytes)} of weights"]
    if card.weights_bytes <= room:
        parts += [f"{text(held - taken_bytes)} of models in use"] if held > taken_bytes else []
        parts += [f"{text(taken_bytes)} of running requests"] if taken_bytes else []
    if reserved_bytes:
        parts.append(f"{text(reserved_bytes)} of prefix cache")
    total = card.weights_bytes + reserved_bytes + (held if card.weights_bytes <= room else 0)
    sum_text = f"{' + '.join(parts)} = {text(total)}"
    if card.weights_bytes <= room:
        raise UnavailableError(
            f"{card.name!r} does not fit into {text(limit_bytes)} now: {sum_text}",
            mend="come back when less is running, or raise runtime.memory_limit",
            retry_after_ns=_RETRY_AFTER_NS,
        )
    raise NoMemoryError(
        f"{card.name!r} does not fit into {text(limit_bytes)}: {sum_text}",
        mend="raise runtime.memory_limit, quantise the weights (weight_bits = 4), or take a smaller model",
    )


def idle(residents: Sequence[Resident], *, ttl_ns: int, now_ns: int) -> list[str]:
    """Return the models that nobody uses and nobody has used for ``ttl_ns``."""
    return [one.name for one in residents if not one.users and now_ns - one.used_ns >= ttl_ns]


def shares(weights_bytes: Sequence[int], *, limit_bytes: int, reserved_bytes: int) -> list[int]:
    """Return what each of several processes may use: its weights, its prefix cache, and an equal part of the rest.

    ``weights_bytes`` are those of each process, ``reserved_bytes`` the prefix cache of each.
    """
    rest = max(0, limit_bytes - sum(weights_bytes) - len(weights_bytes) * reserved_bytes)
    return [weights + reserved_bytes + rest // len(weights_bytes) for weights in weights_bytes]

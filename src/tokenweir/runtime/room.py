"""Which models must go so that another fits. Sans-IO."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenweir.core.errors import NoMemoryError
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.scheduling.budget import text


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory: ``used_ns`` is when it was used last, ``users`` how many use it now."""

    name: str
    weights_bytes: int
    used_ns: int
    users: int = 0


def victims(
    card: ModelCard, residents: Sequence[Resident], *, limit_bytes: int, reserved_bytes: int
) -> list[str]:
    """Return the models to unload, least recently used first and none in use, so that ``card``'s weights fit.

    Raises:
        NoMemoryError: it does not fit even then; the message holds the arithmetic.
    """
    room = limit_bytes - reserved_bytes
    held = sum(one.weights_bytes for one in residents)
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
    if held:
        parts.append(f"{text(held)} of models in use")
    if reserved_bytes:
        parts.append(f"{text(reserved_bytes)} of prefix cache")
    needed = text(card.weights_bytes + held + reserved_bytes)
    raise NoMemoryError(
        f"{card.name!r} does not fit into {text(limit_bytes)}: {' + '.join(parts)} = {needed}",
        mend="raise runtime.memory_limit, quantise the weights (weight_bits = 4), or take a smaller model",
    )


def idle(residents: Sequence[Resident], *, ttl_ns: int, now_ns: int) -> list[str]:
    """Return the models that nobody uses and nobody has used for ``ttl_ns``."""
    return [one.name for one in residents if not one.users and now_ns - one.used_ns >= ttl_ns]

"""Headers of answers that say what was done with a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

REPLAYED: Final = (b"idempotent-replayed", b"true")
"""Its idempotency key was known: this is the same request again."""


def degraded(what: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """Return the header that tells what was taken from a request, where something was."""
    return [(b"x-weir-degraded", ", ".join(what).encode())] if what else []

"""The garbage collector of a server: what is there when it is ready stays, and nobody looks through it again."""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 20_000
"""Objects that are made before the youngest are looked through: more than the requests in flight hold."""


def settle() -> None:
    """Leave what was made until now out of all later collections.

    Otherwise a collection among requests looks through every module that was imported, while all of them wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)

"""Work of one step that several threads do, each on a core of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Part = TypeVar("Part")


class Hands:
    """As many threads as ``count``, this one among them, that do parts of the same work.

    None waits awake. Where something else wants a core, its part is done more slowly, or here, if this thread is done
    with its own before the other has begun.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._others = ThreadPoolExecutor(count - 1, "hand") if count > 1 else None

    def work(self, do: Callable[[Part], None], parts: Sequence[Part]) -> None:
        """Do every part; when this returns or raises, none is being done any more."""
        if self._others is None or len(parts) == 1:
            for part in parts:
                do(part)
            return
        given = [(part, self._others.submit(do, part)) for part in parts[1:]]
        try:
            do(parts[0])
            # The last was given last, so it is the likeliest not to have been begun.
            for part, future in reversed(given):
                if future.cancel():
                    do(part)
                else:
                    future.result()
        finally:
            wait([future for _, future in given if not future.cancel()])


@functools.cache
def shared(count: int) -> Hands:
    """Return the hands that all models of this process share: they take turns."""
    return Hands(count)

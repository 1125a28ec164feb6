"""How NumPy's matrices are multiplied: by how many threads, and in which pieces."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tokenweir import config

_VARIABLES: Final = frozenset({"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"})

_SMALL: Final = frozenset({b"SkylakeX", b"Cooperlake", b"SapphireRapids"})
"""OpenBLAS's names of the cores for which it multiplies small matrices where they lie, without copying them first."""


class Multiplying(NamedTuple):
    """What multiplies: BLAS threads, ``None`` for a library that is not known; whether small pieces are fast.

    ``hands`` are the threads of ours that may multiply at once.
    """

    threads: int | None
    in_pieces: bool
    hands: int


class _Library(NamedTuple):
    """NumPy's OpenBLAS, and what the names of its functions end in."""

    functions: Any
    suffix: str

    def threads(self) -> int:
        """Return how many it uses."""
        return getattr(self.functions, f"scipy_openblas_get_num_threads{self.suffix}")()

    def use(self, threads: int) -> None:
        """Change the number of its threads."""
        getattr(self.functions, f"scipy_openblas_set_num_threads{self.suffix}")(threads)

    def core(self) -> bytes:
        """Return its name of the processor's kind."""
        named = getattr(self.functions, f"scipy_openblas_get_corename{self.suffix}")
        named.restype = ctypes.c_char_p
        return named()


@functools.cache
def leave_cores() -> Multiplying:
    """Have NumPy multiply with half as many threads as there are cores, unless the environment says how many.

    OpenBLAS's threads wait for one another awake: where one of them has to wait for a core, because of the server, its
    clients or anything else, all wait at every product, and a step takes ten times as long. Where one is left, two
    threads of ours can take halves of a step that need not wait for each other. Small pieces are for one
    thread too: OpenBLAS does not share them out.
    """
    library = _library()
    if library is None:
        return Multiplying(threads=None, in_pieces=False, hands=1)
    cores = library.threads()
    told = not _VARIABLES.isdisjoint(config.read_environment())
    if not told:
        library.use(max(1, cores // 2))
    threads = library.threads()
    alone = threads == 1
    return Multiplying(
        threads=threads,
        in_pieces=alone and library.core() in _SMALL,
        hands=2 if alone and cores > 1 and not told else 1,
    )


def _library() -> _Library | None:
    """Return the library that NumPy's wheels bring."""
    for path in sorted(Path(np.__file__).parent.with_name("numpy.libs").glob("libscipy_openblas*")):
        try:
            library = _Library(ctypes.CDLL(str(path)), "64_" if "openblas64" in path.name else "")
            library.threads()
        except (OSError, AttributeError):
            continue
        return library
    return None

"""How many threads multiply NumPy's matrices."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tokenweir import config

_VARIABLES: Final = frozenset({"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"})


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


@functools.cache
def leave_cores() -> int | None:
    """Have NumPy multiply with half as many threads as there are cores, unless the environment says how many.

    OpenBLAS's threads wait for one another awake: where one of them has to wait for a core, because of the server, its
    clients or anything else, all wait at every product, and a step takes ten times as long.
    Returns the number of threads, or ``None`` where NumPy uses a library that is not known.
    """
    library = _library()
    if library is None:
        return None
    if not _VARIABLES.intersection(config.read_environment()):
        library.use(max(1, library.threads() // 2))
    return library.threads()


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

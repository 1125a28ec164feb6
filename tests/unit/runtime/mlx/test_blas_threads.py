from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

THREADS = """
from tokenweir.runtime.engines.mlx import blas_threads

library = blas_threads._library()
first = library and library.threads()
found = blas_threads.leave_cores()
print(first, found.threads, library and library.threads(), found.hands)
"""


def threads(**variables: str) -> tuple[int, int, int, int]:
    """Return the threads at first, those that are told, those afterwards, and ours, in a process of its own."""
    # The tests' own processes are told by such a variable to leave cores to one another.
    ours = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - a child is given it whole
        if not name.endswith("_NUM_THREADS")
    }
    found = subprocess.run(
        [sys.executable, "-c", THREADS], env=ours | variables, capture_output=True, text=True, check=True
    ).stdout.split()
    if found[0] == "None":
        pytest.skip("NumPy does not come from a wheel")
    first, told, last, hands = map(int, found)
    return first, told, last, hands


def test_half_of_the_threads_multiply_and_where_one_is_left_two_of_ours_share_the_work() -> None:
    first, told, last, hands = threads()
    assert told == last == max(1, first // 2)
    assert hands == (2 if first in {2, 3} else 1)


@pytest.mark.parametrize("variable", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_user_may_say_how_many_multiply(variable: str, count: int) -> None:
    assert threads(**{variable: str(count)}) == (count, count, count, 1)

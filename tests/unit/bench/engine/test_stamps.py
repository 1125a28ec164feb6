from __future__ import annotations

import sys
import time
from contextlib import closing

import pytest

from tokenweir.bench.engine.stamps import STAMP, StampSwitch


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps arrivals")
def test_whether_the_kernel_stamps_is_always_said_alike() -> None:
    # The kernel switches its stamps off a while after the last socket that wants them is closed.
    said: set[bool] = set()
    for _ in range(12):
        with closing(StampSwitch()) as switch:
            said.add(switch.on)
        time.sleep(0.05)
    assert said == {True}


def test_a_stamp_is_two_integers() -> None:
    assert STAMP.size == 16

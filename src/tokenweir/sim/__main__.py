"""``python -m tokenweir.sim``: a simulator from one line of JSON options on standard input.

This is the door for programs (:class:`tokenweir.sim.process.SimProcess`); people use ``weir sim``. Where
standard input is a pipe, the simulator ends with it, so it never outlives the program that started it.
"""

from __future__ import annotations

import os
import stat
import sys

from tokenweir.core.errors import WeirError
from tokenweir.sim.options import read_options
from tokenweir.sim.running import run


def main() -> int:
    """Read the options, serve until stopped, return the exit status."""
    fd = sys.stdin.fileno()
    tether = fd if stat.S_ISFIFO(os.fstat(fd).st_mode) else None
    try:
        return run(read_options(sys.stdin.buffer.readline() or b"{}"), tether=tether)
    except WeirError as error:
        sys.stderr.write(f"weir sim: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

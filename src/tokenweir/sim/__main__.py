"""``python -m tokenweir.sim``: a simulator from options in JSON on standard input.

This is the door for programs (:class:`tokenweir.sim.process.SimProcess`); people use ``weir sim``.
"""

from __future__ import annotations

import sys

from tokenweir.core.errors import WeirError
from tokenweir.sim.options import read_options
from tokenweir.sim.running import run


def main() -> int:
    """Read the options, serve until stopped, return the exit status."""
    try:
        return run(read_options(sys.stdin.buffer.read() or b"{}"))
    except WeirError as error:
        sys.stderr.write(f"weir sim: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

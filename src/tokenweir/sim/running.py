"""Starting a simulator in this process, and saying when it is ready."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenweir.core.errors import ConfigError
from tokenweir.sim.options import READY_PREFIX, READY_SUFFIX, Options
from tokenweir.sim.server import Server


def run(options: Options, *, ready_file: Path | None = None, tether: int | None = None) -> int:
    """Listen, print the ready line, serve until SIGTERM or Ctrl-C; return the exit status.

    The line is ``weir sim: http://HOST:PORT ready``; ``ready_file`` gets the URL alone.
    ``tether`` is a descriptor whose end is the simulator's end too.

    Raises:
        ConfigError: the options cannot be used, or the address is taken.
        DescriptorError: fewer files may be opened than ``options.connections`` needs.
    """
    server = Server(options)
    if ready_file is not None:
        try:
            ready_file.write_text(server.url + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"the ready file '{ready_file}' cannot be written: {error.strerror}", mend="mend the path"
            ) from None
    sys.stdout.write(f"{READY_PREFIX}{server.url}{READY_SUFFIX}\n")
    sys.stdout.flush()
    return server.run(tether)

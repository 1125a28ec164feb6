"""``python -m tokenweir.runtime.child --fd N``: the engine's process, started by the server with its end of a socket.

It ends with status 0 when it is told to or when the server is gone, and with 70 when its device thread failed.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from tokenweir.runtime.bridge.messages import Done
from tokenweir.runtime.bridge.server import BridgeServer
from tokenweir.runtime.child.commands import Stop
from tokenweir.runtime.child.device import Device
from tokenweir.runtime.child.rpc import Service

EXIT_DEVICE_FAILED: Final = 70
_LAST_STEP_S: Final = 2.0
"""How long a step may go on after the server has gone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the bridge until its other end is closed; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tokenweir.runtime.child", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a connected Unix socket")
    descriptor = parser.parse_args(arguments).fd
    # An interrupt in the terminal is for the server, which ends this process in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        parser.error(f"descriptor {descriptor} is no socket: {error.strerror}")
    with sock:
        return serve(sock)


def serve(sock: socket.socket) -> int:
    """Serve one connection with a device of its own; return the exit status."""
    device = Device()
    service = Service(device)
    server = BridgeServer(sock, service.handlers(), service.notices())
    device.start(lambda stepped: server.notify("stepped", stepped), server.stop)
    try:
        server.serve()
    finally:
        device.post(Stop(answer=Future[Done]()))
        ended = device.join(_LAST_STEP_S)
    if not ended:
        logging.getLogger(__name__).warning("a step did not end; the process ends without it")
    return EXIT_DEVICE_FAILED if device.died else 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # The interpreter's own end would wait for, or trip over, a device thread that is still in a step.
    os._exit(status)

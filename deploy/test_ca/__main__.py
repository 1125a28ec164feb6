"""``python -m deploy.test_ca FOLDER``: an authority, and a certificate for a server and for a client."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.test_ca import HOSTS, TestCa


def main(arguments: Sequence[str] | None = None) -> None:
    """Make ``ca.pem``, and a certificate and key for ``server`` and ``client``."""
    parser = argparse.ArgumentParser(prog="python -m deploy.test_ca", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--host", action="append", default=[], help="a further host or address of the server")
    asked = parser.parse_args(arguments)
    authority = TestCa(asked.folder)
    server = authority.issue("server", (*HOSTS, *asked.host))
    client = authority.issue("client", ("client",))
    for what, path in (
        ("authority", authority.certificate),
        ("server", server.certificate),
        ("client", client.certificate),
    ):
        sys.stdout.write(f"{what:<10}{path}\n")


if __name__ == "__main__":
    main()

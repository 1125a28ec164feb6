"""Why an address cannot be listened on, in words."""

from __future__ import annotations

import errno
from typing import Final

from tokenweir.core.errors import ConfigError

_FREE: Final = "or choose another with {flag} (0 picks a free one)"


def cannot_listen(
    host: str, port: int, error: OSError | OverflowError, *, flag: str = "--port"
) -> ConfigError:
    """Return the error that says why ``host`` and ``port`` cannot be listened on; ``flag`` chooses another port."""
    another = _FREE.format(flag=flag)
    if isinstance(error, OverflowError):
        return ConfigError(f"there is no port {port}", mend=f"choose one up to 65535 with {flag}")
    match error.errno:
        case errno.EADDRINUSE:
            return ConfigError(f"port {port} is in use on {host}", mend=f"stop what uses it, {another}")
        case errno.EACCES:
            return ConfigError(
                f"port {port} may not be listened on by this user", mend=f"take one from 1024 on, {another}"
            )
        case errno.EADDRNOTAVAIL:
            return ConfigError(f"{host} is no address of this machine", mend="mend --host")
        case _:
            return ConfigError(
                f"{host}:{port} cannot be listened on: {error.strerror or error}",
                mend="mend --host or the port",
            )

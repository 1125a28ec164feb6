"""The address under test, taken apart once for the engine."""

from __future__ import annotations

import ipaddress
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from tokenweir import __version__
from tokenweir.core.errors import SpecError, UnreachableError
from tokenweir.ports.backend import HttpRequest


class Target(NamedTuple):
    """Where requests go. ``prefix`` is the URL's own path, before the backend's; ``local`` says: this machine."""

    host: str
    port: int
    tls: bool
    prefix: str
    local: bool

    @property
    def authority(self) -> str:
        """The value of the host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def parse_target(url: str) -> Target:
    """Take a URL apart and look its host up.

    Raises:
        SpecError: it is no http or https URL.
        UnreachableError: its host is unknown.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = f"the URL {url!r} is no http:// or https:// address"
        raise SpecError(message, mend="write http://HOST:PORT")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    try:
        addresses = {
            str(info[4][0]) for info in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        }
    except OSError as error:
        message = f"the host {parts.hostname!r} is unknown: {error.strerror}"
        raise UnreachableError(message, mend="check the spelling and this machine's name service") from error
    return Target(parts.hostname, port, tls, parts.path.rstrip("/"), all(map(_is_local, addresses)))


def _is_local(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.is_loopback:
        return True
    # An address of one of this machine's own interfaces can be bound to.
    try:
        with socket.socket(
            socket.AF_INET6 if isinstance(ip, ipaddress.IPv6Address) else socket.AF_INET, socket.SOCK_DGRAM
        ) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def render(request: HttpRequest, target: Target, headers: tuple[tuple[str, str], ...]) -> bytes:
    """Return the bytes of a request on the wire. ``headers`` are the caller's own, the key's among them.

    Compression is refused, because a compressed stream hides when a token came.
    """
    ours = (
        ("host", target.authority),
        ("user-agent", f"tokenweir/{__version__}"),
        ("accept-encoding", "identity"),
        ("content-length", str(len(request.body))),
        *request.headers,
    )
    own = {name.lower() for name, _ in headers}
    lines = [f"{request.method} {target.prefix}{request.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in ours if name.lower() not in own]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + request.body

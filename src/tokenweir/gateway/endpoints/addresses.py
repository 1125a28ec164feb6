"""Where endpoints may be: never where a cloud keeps its metadata, and within the networks that the settings name."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final, Self

from tokenweir.core.errors import ConfigError, UnreachableError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"))
)
"""Where clouds answer with credentials, link-local or not."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRules:
    """Which addresses are connected to. With ``networks`` those inside them, and no other."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Self:
        """Read networks as they are written in settings. Raises ConfigError."""
        try:
            return cls([ipaddress.ip_network(text) for text in texts])
        except ValueError as error:
            raise ConfigError(
                f"gateway.endpoint_networks: {error}", mend="write 10.0.0.0/8 or fd12::/16"
            ) from error

    def allows(self, address: str) -> bool:
        """Whether an address may be connected to."""
        found = reached(address)
        if found in _METADATA:
            return False
        if self._networks:
            return any(found in network for network in self._networks)
        return not (found.is_link_local or found.is_multicast or found.is_unspecified)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host that may be connected to.

        Raises:
            OSError: the host has no address.
            UnreachableError: none is allowed.
        """
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        allowed = [address for address in addresses if self.allows(address)]
        if not allowed:
            raise UnreachableError(
                f"the endpoint's host {host!r} is at {addresses[0]}, which may not be called",
                mend="mend its URL, or gateway.endpoint_networks",
            )
        return allowed


def reached(address: str) -> Address:
    """Return what an address leads to: that of the old kind where one of the new kind stands for it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return found
    inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
    if inner is None and found in _NAT64:
        inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
    return inner or found

"""What both clients give back, and how they read what they are given."""

from __future__ import annotations

import socket
import ssl

import msgspec

from tokenweir.client.options import Options, Proxy
from tokenweir.client.steps import Lost
from tokenweir.core.errors import EndpointError, ServingError, UnauthorizedError, WeirError
from tokenweir.core.status import RequestStatus
from tokenweir.core.units import parse_duration


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """One of a batch: its place, and how it ended, or why it was refused."""

    index: int
    status: RequestStatus | None = None
    error: WeirError | None = None

    @property
    def text(self) -> str:
        """The text of its answer; "" where there is none."""
        return self.status.text if self.status is not None else ""


def concerns_all(error: WeirError) -> bool:
    """Whether an error of one of a batch is one of them all: of the key, the limits or the gateway."""
    return isinstance(error, UnauthorizedError | ServingError | EndpointError)


def item_key(name: str, index: int) -> str:
    """Return the idempotency key of one of a batch."""
    return f"{name}-{index}"


def check(options: Options) -> None:
    """Raise InputError for options that cannot be used."""
    if options.proxy is not None:
        Proxy.parse(options.proxy)


def read_timeout(timeout: str | int | None) -> int | None:
    """Return a time as ns. Raises InputError."""
    return parse_duration(timeout, what="timeout") if isinstance(timeout, str) else timeout


def lost(error: Exception) -> Lost:
    """Return what a broken connection means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Lost(f"its certificate is not trusted: {error.verify_message}", final=True)
    if isinstance(error, socket.gaierror):
        return Lost(f"its name is not known: {error.strerror}", final=True)
    if isinstance(error, TimeoutError):
        return Lost("nothing came in time")
    return Lost(str(error) or type(error).__name__)

"""What a client may be told: where gateways are, how patient it is, and whom it trusts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

import msgspec

from tokenweir.core.errors import InputError

_S = 1_000_000_000
_PORTS = {"http": 80, "https": 443}


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to trust, and who one is. Without ``authority`` the system's certificate authorities are trusted.

    ``certificate`` and ``key`` are this client's own, PEM, for a gateway that asks for one.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    password: str | None = None

    def context(self) -> ssl.SSLContext:
        """Return what connections are secured with. Raises InputError for a file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, self.password)
        except OSError as error:
            named = self.authority if self.certificate is None else self.certificate
            raise InputError(
                f"the certificate {str(named)!r} cannot be used: {error}", mend="give a readable PEM file"
            ) from error
        return context


class Proxy(msgspec.Struct, frozen=True):
    """A forward proxy that connections go through, by ``CONNECT``. ``credentials`` are user and password, if any."""

    host: str
    port: int
    credentials: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``http://HOST:PORT``, or ``http://USER:PASSWORD@HOST:PORT``. Raises InputError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme != "http" or not parts.hostname or port is None or parts.path.strip("/"):
            # The message does not repeat it: it may hold a password.
            raise InputError("the proxy's URL cannot be used", mend="write it as http://proxy.internal:3128")
        credentials = (
            "" if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        )
        return cls(parts.hostname, port, credentials)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a client behaves.

    ``patience_ns`` is how long it goes on trying in vain, counted anew whenever something has come.
    ``answer_ns`` is how long one attempt may take to be answered, ``silence_ns`` how long a stream may say nothing,
    not even a heartbeat, before its connection counts as lost. ``proxy`` is the URL of a forward proxy that gateways
    are reached through; the environment's proxies are not looked at.
    """

    patience_ns: int = 60 * _S
    connect_ns: int = 5 * _S
    answer_ns: int = 60 * _S
    silence_ns: int = 45 * _S
    backoff_ns: int = _S // 10
    backoff_most_ns: int = 5 * _S
    tls: Tls = Tls()
    proxy: str | None = None


class Origin(msgspec.Struct, frozen=True):
    """Where a gateway is. ``prefix`` comes before every path."""

    host: str
    port: int
    secure: bool
    prefix: str
    text: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a base URL; a ``/v1`` at its end, as OpenAI's clients have it, may be there. Raises InputError."""
        try:
            parts = urlsplit(url)
            port = parts.port
            host = (parts.hostname or "").encode("idna").decode("ascii")
        except ValueError as error:
            raise InputError(f"the URL {url!r} cannot be read: {error}") from error
        if (
            parts.scheme not in _PORTS
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
        ):
            raise InputError(f"{url!r} is no URL of a gateway", mend="write it as http://127.0.0.1:8080")
        prefix = quote(parts.path.rstrip("/").removesuffix("/v1"), safe="/%:@!$&'()*+,;=~")
        return cls(
            host=host,
            port=port or _PORTS[parts.scheme],
            secure=parts.scheme == "https",
            prefix=prefix,
            text=url,
        )

    @property
    def authority(self) -> str:
        """The value of the header ``host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.secure else "http"] else f"{host}:{self.port}"

"""TLS 1.2 and above for listeners and clients, from PEM files that are checked before anything is opened."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec

from tokenweir.core.errors import ConfigError

_WANTS_MORE: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client showed no certificate",
    "HTTP_REQUEST": "the client does not speak TLS",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "RECORD_LAYER_FAILURE": "the other side does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "the client speaks nothing above TLS 1.1",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the server speaks nothing above TLS 1.1",
    "TLSV1_ALERT_UNKNOWN_CA": "the other side does not trust our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other side says that our certificate has expired",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server wants a client certificate",
}

Told = Callable[[str], None]
"""Is told why a client was refused, or what became of files that were renewed."""


class _Password(Protocol):
    def read(self) -> str: ...


class ListenerFiles(Protocol):
    """What settings say of a listener's TLS."""

    @property
    def certificate(self) -> Path:
        """Its certificate."""
        ...

    @property
    def key(self) -> Path:
        """The certificate's key."""
        ...

    @property
    def key_password(self) -> _Password | None:
        """The key's password."""
        ...

    @property
    def client_ca(self) -> Path | None:
        """Who signs the certificates that clients must show."""
        ...


class ClientFiles(Protocol):
    """What settings say of a client's TLS."""

    @property
    def ca(self) -> Path | None:
        """Whom it trusts."""
        ...

    @property
    def certificate(self) -> Path | None:
        """What it shows."""
        ...

    @property
    def key(self) -> Path | None:
        """The certificate's key."""
        ...

    @property
    def key_password(self) -> _Password | None:
        """The key's password."""
        ...


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who we are: PEM files of a certificate, with what leads to its CA after it, and of its private key."""

    certificate: Path
    key: Path
    password: str = ""

    def __repr__(self) -> str:
        return f"Identity({str(self.certificate)!r})"


class ServerContext(ssl.SSLContext):
    """The context of a listener, which takes up a certificate that is renewed where it lies.

    Its server looks every ``renew_s``. ``renewed`` is told of each that was taken up, or could not be.
    """

    identity: Identity
    renewed: Told
    renew_s = 30.0
    _seen: tuple[tuple[int, int], ...] = ()

    def note(self) -> bool:
        """Return whether the files are others than at the last call. Raises OSError where one is not there."""
        found = tuple(
            (stat.st_mtime_ns, stat.st_size)
            for stat in (path.stat() for path in (self.identity.certificate, self.identity.key))
        )
        changed, self._seen = found != self._seen, found
        return changed

    def renew(self) -> None:
        """Use the files if they have changed, for connections from now on; what cannot be used changes nothing."""
        try:
            if self.note():
                # First apart: half of a pair would leave the listener with nothing that fits.
                _check_dates(self.identity)
                _show(self, self.identity)
                self.renewed(f"the certificate '{self.identity.certificate}' was taken up anew")
        except ConfigError as error:
            self.renewed(f"a renewed certificate is not used: {error.message}")
        except OSError:
            # It is being replaced.
            return


def listener(
    files: ListenerFiles | None, refused: Told, renewed: Told | None = None
) -> ssl.SSLContext | None:
    """Return the context that settings ask for, if they do. Raises ConfigError as :func:`server_context`."""
    if files is None:
        return None
    return server_context(identity_of(files), client_ca=files.client_ca, refused=refused, renewed=renewed)


def client(files: ClientFiles | None) -> ssl.SSLContext | None:
    """Return the context that settings ask for, if they do. Raises ConfigError as :func:`client_context`."""
    if files is None:
        return None
    identity = None
    if files.certificate is not None and files.key is not None:
        password = files.key_password
        identity = Identity(
            certificate=files.certificate, key=files.key, password=password.read() if password else ""
        )
    return client_context(ca=files.ca, identity=identity)


def identity_of(files: ListenerFiles) -> Identity:
    """Return who a listener is. Raises ConfigError for a password that cannot be read."""
    password = files.key_password
    return Identity(
        certificate=files.certificate, key=files.key, password=password.read() if password else ""
    )


def server_context(
    identity: Identity, *, client_ca: Path | None, refused: Told, renewed: Told | None = None
) -> ServerContext:
    """Return the context of a listener; with ``client_ca`` clients must show a certificate that it has signed.

    Raises ConfigError: a file cannot be read or used, or the certificate is not valid now.
    """
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.identity, context.renewed = identity, renewed or _untold
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _show(context, identity)
    _check_dates(identity)
    context.note()
    if client_ca is not None:
        _trust(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    # The event loop's own TLS drops the reason of a handshake that failed.
    context.sslobject_class = cast("type[ssl.SSLObject]", type("_Told", (_Watched,), {"refused": refused}))
    return context


def client_context(*, ca: Path | None = None, identity: Identity | None = None) -> ssl.SSLContext:
    """Return the context of a client. Without ``ca`` the system's authorities are trusted. Raises ConfigError."""
    context = ssl.create_default_context() if ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca is not None:
        _trust(context, ca)
    if identity is not None:
        _show(context, identity)
        _check_dates(identity)
    return context


def why(error: ssl.SSLError) -> str:
    """Return in words why a handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    reason = error.reason or "unknown"
    return _REASONS.get(reason, reason.lower().replace("_", " "))


def _untold(_what: str) -> None:
    """Tell nobody."""


class _Watched(ssl.SSLObject):
    """Tells why a handshake failed."""

    refused: Told

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        try:
            super().do_handshake()
        except _WANTS_MORE:
            raise
        except ssl.SSLError as error:
            type(self).refused(why(error))
            raise


def _show(context: ssl.SSLContext, identity: Identity) -> None:
    for what, path in (("certificate", identity.certificate), ("key", identity.key)):
        _need(path, f"TLS {what}")

    def password() -> str:
        if not identity.password:
            raise ConfigError(
                f"the TLS key '{identity.key}' is encrypted", mend="say in key_password where its password is"
            )
        return identity.password

    try:
        context.load_cert_chain(identity.certificate, identity.key, cast("Any", password))
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "MISMATCH" in reason:
            raise ConfigError(
                f"the TLS key '{identity.key}' is not that of the certificate '{identity.certificate}'",
                mend="name the key that the certificate was made with",
            ) from error
        if identity.password and (not reason or "DECRYPT" in reason):
            raise ConfigError(
                f"the password of the TLS key '{identity.key}' is wrong", mend="mend what key_password names"
            ) from error
        raise ConfigError(
            f"the TLS certificate '{identity.certificate}' and its key '{identity.key}' cannot be used:"
            f" {reason.lower().replace('_', ' ') or error}",
            mend="name PEM files",
        ) from error


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    _need(ca, "TLS authority")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ConfigError(f"the TLS authority '{ca}' cannot be used", mend="name a PEM file") from error


def _need(path: Path, what: str) -> None:
    try:
        path.expanduser().open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"the {what} '{path}' cannot be read: {error.strerror}", mend="make it readable or mend the path"
        ) from error


def _check_dates(identity: Identity) -> None:
    """Raise ConfigError where the certificate is not valid now: a handshake with ourselves finds out."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _show(server, identity)
    client.check_hostname = False
    client.load_verify_locations(identity.certificate)
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(back, there)
    answers = server.wrap_bio(there, back, server_side=True)
    for side in (asks, answers, asks):
        try:
            side.do_handshake()
        except _WANTS_MORE:
            continue
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in {_NOT_YET_VALID, _EXPIRED}:
                said = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
                raise ConfigError(
                    f"the TLS certificate '{identity.certificate}' {said}",
                    mend="make a new one, or set the clock",
                ) from error
            return
        except ssl.SSLError:
            return

"""The side doors of a server under test: is it there, what is it, and flush, profile, abort.

Synchronous and one connection per request, because it runs before and after the load, never during it.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Final, Protocol, runtime_checkable

from tokenweir.backends.openai import models
from tokenweir.bench.target import Target, parse_target
from tokenweir.core.errors import (
    ConfigError,
    EndpointError,
    OverloadedError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)
from tokenweir.core.requests import Json
from tokenweir.ports.backend import Backend, HttpRequest, HttpResponse, Identity

DEFAULT_TIMEOUT_S: Final = 30.0
"""Bound of each connect, send and read; a health route that generates a token takes over a second."""

LARGEST_ANSWER: Final = 16 << 20
"""Bytes read of one answer; server information is well below."""

_GOOD: Final = 200
_REDIRECT: Final = range(300, 400)
_ERROR: Final = 400
_KEY: Final = re.compile(r"[\x21-\x7e]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_MODELS: Final = HttpRequest(method="GET", path="/v1/models")


@runtime_checkable
class Forgiving(Protocol):
    """A backend whose engine answers some actions with an error status though nothing is wrong."""

    def forgives(self, action: str, status: int) -> bool:
        """Return whether ``status`` is no failure of ``action``."""
        ...


class Endpoint:
    """A server under test behind its URL. The key goes as a bearer token; neither it nor a header is shown.

    Raises:
        SpecError: ``url`` is no http or https URL.
        UnreachableError: its host is unknown.
        ConfigError: ``key`` or a header's value cannot stand in a header.
    """

    __slots__ = ("_backend", "_headers", "_target", "_timeout_s", "url")

    def __init__(
        self,
        url: str,
        backend: Backend,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.url = url.rstrip("/")
        self._backend = backend
        self._target = parse_target(url)
        self._timeout_s = timeout_s
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        for name, value in self._headers.items():
            if _VALUE.fullmatch(value) is None:
                raise ConfigError(f"the value of header {name!r} holds characters that no header may hold")
        if key is not None:
            if _KEY.fullmatch(key) is None:
                raise ConfigError(
                    "the key is empty or holds white space or other characters that no header may hold",
                    mend="look at the variable or file that holds it",
                )
            self._headers["authorization"] = f"Bearer {key}"

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self._backend.kind!r})"

    def check(self, model: str) -> None:
        """Make sure that the server answers and serves ``model``; an empty name is not looked for.

        A server that lists no models is believed: the first request will tell.

        Raises:
            UnreachableError: no connection, or none that answers in time.
            RefusedError: 401, 403, 404, or a model that is not served.
            OverloadedError: 429, 503: it is starting, or has too much to do.
            EndpointError: any other answer that is not 200.
        """
        health = self._backend.health()
        answer = self.send(health)
        if answer.status != _GOOD:
            raise self._explain(health, answer)
        if not model:
            return
        if health.path != _MODELS.path:
            answer = self._try(_MODELS)
        served = [card.id for card in models(answer)]
        if served and model not in served:
            raise RefusedError(f"{self.url} does not serve the model {model!r}", mend=_choice(served))

    def identity(self) -> Identity:
        """Return what the server says of itself; a door that does not open leaves its facts unknown."""
        return self._backend.identity([self._try(probe) for probe in self._backend.identity_probes()])

    def act(self, name: str, options: Mapping[str, Json] | None = None) -> bool:
        """Do ``flush``, ``start_profile``, ``stop_profile`` or ``abort``.

        Returns False when the engine has no such door. Raises EndpointError as :meth:`check` does.
        """
        request = self._backend.action(name, options or {})
        if request is None:
            return False
        answer = self.send(request)
        backend = self._backend
        forgiven = isinstance(backend, Forgiving) and backend.forgives(name, answer.status)
        if (answer.status >= _ERROR or answer.status in _REDIRECT) and not forgiven:
            raise self._explain(request, answer)
        return True

    def send(self, request: HttpRequest) -> HttpResponse:
        """Return the answer to one request, whatever its status.

        Raises:
            UnreachableError: no connection, no answer in time, or a connection that broke before it.
            ProtocolError: the other side does not speak HTTP.
        """
        connection = self._connection()
        headers = {
            "host": self._target.authority,
            "accept-encoding": "identity",
            **dict(request.headers),
            **self._headers,
        }
        body = request.body if request.body or request.method == "POST" else None
        try:
            connection.request(request.method, self._target.prefix + request.path, body, headers)
            answer = connection.getresponse()
            content = answer.read(LARGEST_ANSWER)
        except http.client.RemoteDisconnected as error:
            raise UnreachableError(
                f"{self.url} closed the connection without an answer to {_named(request)}",
                mend="see the server's log",
            ) from error
        except OSError as error:
            raise self._unreachable(request, error) from error
        except (http.client.HTTPException, ValueError) as error:
            raise ProtocolError(
                f"{self.url} does not answer in HTTP ({type(error).__name__})",
                mend="check the port, and http:// against https://",
            ) from error
        finally:
            connection.close()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return HttpResponse(status=answer.status, headers=names, body=content)

    def _connection(self) -> http.client.HTTPConnection:
        target: Target = self._target
        if target.tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                target.host, target.port, timeout=self._timeout_s, context=context
            )
        return http.client.HTTPConnection(target.host, target.port, timeout=self._timeout_s)

    def _try(self, request: HttpRequest) -> HttpResponse:
        try:
            return self.send(request)
        except EndpointError:
            return HttpResponse(status=0)

    def _unreachable(self, request: HttpRequest, error: OSError) -> UnreachableError:
        match error:
            case ConnectionRefusedError():
                what, mend = f"nothing listens at {self.url}", "start the server, or check host and port"
            case TimeoutError():
                what = f"{self.url} gave no answer to {_named(request)} within {self._timeout_s:g} s"
                mend = "check that the server runs and is not stuck; a firewall also looks like this"
            case ssl.SSLCertVerificationError():
                what = f"the certificate of {self.url} is not trusted: {error.verify_message}"
                mend = "add its authority to this machine's trust store (SSL_CERT_FILE)"
            case ssl.SSLError():
                what = f"{self.url} does not speak TLS ({error.reason or 'no handshake'})"
                mend = "try http:// instead of https://"
            case socket.gaierror():
                what = f"the host {self._target.host!r} is unknown"
                mend = "check the spelling and this machine's name service"
            case _:
                what = f"{self.url} cannot be reached: {error.strerror or type(error).__name__}"
                mend = "check host, port and network"
        return UnreachableError(what, mend=mend)

    def _explain(self, request: HttpRequest, answer: HttpResponse) -> EndpointError:
        """Return the backend's reading of an answer with the URL and, for 404 and redirects, the path."""
        error = self._backend.error(answer)
        message, mend = f"{_named(request)} at {self.url}: {error.message}", error.mend
        if answer.status in _REDIRECT:
            mend = f"use the URL that it points to: {answer.headers.get('location', 'none given')!r}"
        elif answer.status == http.HTTPStatus.NOT_FOUND:
            mend = f"check --url and --backend: a server of kind {self._backend.kind!r} has {request.path}"
            if self._target.prefix.endswith("/v1"):
                mend = "leave /v1 out of the URL: the backend adds it"
        if isinstance(error, OverloadedError):
            wait = error.retry_after_ns
            return OverloadedError(message, mend=mend, status=error.status, retry_after_ns=wait)
        return type(error)(message, mend=mend, status=error.status)


def _named(request: HttpRequest) -> str:
    return f"{request.method} {request.path}"


def _choice(served: list[str]) -> str:
    shown = ", ".join(repr(name) for name in served[:8])
    more = f" and {len(served) - 8} more" if len(served) > 8 else ""  # noqa: PLR2004
    return f"use --model with one of {shown}{more}"

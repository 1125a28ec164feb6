"""Traces as the rest of the program sees them. What makes them is loaded only where the settings ask for traces."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

Value = str | int | float


class Span(Protocol):
    """A step of a request that is being traced."""

    @property
    def headers(self) -> bytes:
        """The header lines that tell the next server of it, each with its end."""
        ...

    def set(self, name: str, value: Value) -> None:
        """Add an attribute."""
        ...

    def call(self, name: str) -> None:
        """Give it another name."""
        ...

    def failed(self, kind: str) -> None:
        """Mark it as failed, by the code of the error."""
        ...


class Tracer(Protocol):
    """Makes spans, each within the one at hand. A span ends with its block; an error that leaves it marks it."""

    def server(
        self, name: str, traceparent: bytes | None, tracestate: bytes | None
    ) -> AbstractContextManager[Span]:
        """Begin on a request that came in, as a part of the caller's trace where it says one."""
        ...

    def client(
        self, name: str, attributes: dict[str, Value], trace: str | None = None
    ) -> AbstractContextManager[Span]:
        """Begin to ask a server; of a queued request within the ``trace`` that it was accepted in, "" for none."""
        ...

    def work(self, name: str, attributes: dict[str, Value], trace: str) -> AbstractContextManager[Span]:
        """Begin on something that was queued, within the ``trace`` that it was accepted in; "" is none."""
        ...

    def trace(self) -> str:
        """Return the ``traceparent`` of the span at hand; "" is none."""
        ...


class _Untraced:
    """A span that is none."""

    headers = b""

    def set(self, name: str, value: Value) -> None:
        """Do nothing."""

    def call(self, name: str) -> None:
        """Do nothing."""

    def failed(self, kind: str) -> None:
        """Do nothing."""


UNTRACED: Final[AbstractContextManager[Span]] = nullcontext(_Untraced())
"""The block of whoever traces nothing."""

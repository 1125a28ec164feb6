"""Judging an ended exchange: completed, or the first thing that went wrong with it."""

from __future__ import annotations

import errno
import os
from http import HTTPStatus
from typing import Final, NamedTuple

from tokenweir.bench.engine.segment import End
from tokenweir.bench.finishing.exchange import Exchange
from tokenweir.core.events import Token
from tokenweir.ports.backend import Codec


class Outcome(NamedTuple):
    """How an exchange ended: ``error`` is empty when it completed."""

    error: str
    message: str = ""


COMPLETED: Final = Outcome("")
_GIVEN_UP: Final = {
    End.CANCELLED: Outcome("cancelled", "the run was stopped"),
    End.UNSENT: Outcome("cancelled", "the run was stopped"),
    End.TIMEOUT: Outcome(
        "timeout", "no whole answer came within the time limit; raise --timeout or lower the load"
    ),
    End.RESET: Outcome("disconnected", "the server reset the connection; look into its log"),
    End.BAD_HEAD: Outcome(
        "malformed", "the answer does not begin as HTTP/1; check that the URL is a model server's"
    ),
}


def judge(exchange: Exchange, how: int, detail: int, codec: Codec) -> Outcome:
    """Return the outcome of an exchange that ended ``how``; ``detail`` is an errno where no connection was made."""
    if how == End.CONNECT:
        if detail in {errno.EMFILE, errno.ENFILE}:
            return Outcome(
                "descriptors", "no file descriptor was left for a connection; run 'ulimit -n' with more"
            )
        return Outcome("unreachable", f"no connection: {os.strerror(detail)}; check that the server runs")
    given_up = _GIVEN_UP.get(how)
    if given_up is not None:
        return given_up
    if exchange.decoder is not None:
        for _, event in exchange.decoder.end():
            if type(event) is Token:
                # An answer that is not streamed is decoded whole, at its end.
                exchange.add_text([event.text])
            else:
                exchange.note(event)
    fault = exchange.framing_fault(closed=how == End.EOF)
    if fault:
        return Outcome(
            "disconnected" if how == End.EOF else "malformed", f"{fault}; look into the server's log"
        )
    if exchange.status != HTTPStatus.OK:
        error = codec.error(exchange.error_response())
        return Outcome(error.code, str(error))
    if exchange.failure is not None:
        return Outcome(exchange.failure.kind, exchange.failure.message)
    return COMPLETED

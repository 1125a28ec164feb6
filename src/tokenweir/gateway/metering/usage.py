"""The server's own count of tokens, found in bytes that pass by."""

from __future__ import annotations

from typing import Final

import msgspec

_LF_END: Final = b"\n\n"
_CRLF_END: Final = b"\r\n\r\n"
_MARK: Final = b'"usage"'
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_MOST_HELD: Final = 1 << 20

KEPT_ENDPOINT: Final = "cache"
"""What the ledger names as the endpoint of an answer that was kept: no server was asked."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    # The Responses interface has other names for the same.
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Body(msgspec.Struct):
    usage: _Counts | None = None
    choices: list[msgspec.Raw] | None = None


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that the server says a request took."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


_decoder = msgspec.json.Decoder(_Body)


def usage_of(body: bytes) -> TokenCount | None:
    """Return the usage that a whole answer states, or ``None``."""
    if _MARK not in body:
        return None
    found = _read(body)
    return None if found is None else found[0]


def _read(body: bytes | memoryview) -> tuple[TokenCount | None, bool] | None:
    """Return the usage of an object, and whether it holds no choices; ``None`` for what is no such object."""
    try:
        read = _decoder.decode(body)
    except msgspec.MsgspecError:
        return None
    counts, bare = read.usage, not read.choices
    if counts is None:
        return None, bare
    details = counts.prompt_tokens_details
    return (
        TokenCount(
            input_tokens=counts.prompt_tokens if counts.input_tokens is None else counts.input_tokens,
            output_tokens=counts.completion_tokens if counts.output_tokens is None else counts.output_tokens,
            cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
        ),
        bare,
    )


class StreamMeter:
    """Watches a relayed stream: passes its events on whole, learns the usage, and keeps back what was not asked for.

    ``show_usage`` says whether the client asked for the usage chunk. ``chunks`` counts the data events passed on,
    an estimate of the output tokens of a server that counts none.
    """

    __slots__ = ("_end", "_held", "_show_usage", "chunks", "done", "usage")

    def __init__(self, *, show_usage: bool) -> None:
        self._show_usage = show_usage
        self._held = b""
        self._end = _LF_END
        self.usage: TokenCount | None = None
        self.chunks = 0
        self.done = False
        """Whether the server said ``[DONE]``."""

    def feed(self, data: bytes) -> bytes:
        """Return the bytes to pass on: whole events."""
        if self._held:
            data = self._held + data
        end = data.rfind(self._end)
        if end < 0 and _CRLF_END in data:
            self._end = _CRLF_END
            end = data.rfind(_CRLF_END)
        if end < 0:
            if len(data) > _MOST_HELD:
                self._held = b""
                return self._passed(data)
            self._held = data
            return b""
        end += len(self._end)
        whole, self._held = data[:end], data[end:]
        return self._passed(whole)

    def end(self) -> bytes:
        """Return what is left when the server's bytes end."""
        data, self._held = self._held, b""
        return self._passed(data) if data else b""

    def _passed(self, data: bytes) -> bytes:
        self.chunks += data.count(_DATA)
        if _DONE in data:
            self.done = True
            self.chunks -= 1
        if _MARK not in data:
            return data
        return b"".join(event for event in self._events(data) if self._keep(event))

    def _keep(self, event: bytes) -> bool:
        """Learn from an event, and whether to pass it on."""
        if _MARK not in event:
            return True
        start = event.find(_DATA) + len(_DATA)
        found = _read(event[start:].strip())
        if found is None or found[0] is None:
            return True
        self.usage, bare = found
        if bare:
            self.chunks -= 1
        return self._show_usage or not bare

    def _events(self, data: bytes) -> list[bytes]:
        """Return the events, each with its end."""
        pieces = data.split(self._end)
        last = pieces.pop()
        events = [piece + self._end for piece in pieces]
        if last:
            events.append(last)
        return events

"""One request's exchange as the finishing pass rebuilds it from captured reads."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from http import HTTPStatus
from typing import Final

from tokenweir.bench.engine import framing
from tokenweir.bench.finishing.spool import NULL
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Usage
from tokenweir.ports.backend import HttpResponse, StreamDecoder

_ERROR_BODY: Final = 16 << 10
_TEXT_CHARS: Final = 1 << 20
_HEADS: Final = 4096
_FIRST_FINAL: Final = 200


class Heads:
    """Parsed heads by their text: a server's heads are few and alike."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, framing.Head | None] = {}

    def parse(self, text: bytes) -> framing.Head | None:
        """Return what :func:`framing.parse_head` does."""
        if text in self._known:
            return self._known[text]
        if len(self._known) >= _HEADS:
            self._known.clear()
        self._known[text] = head = framing.parse_head(text)
        return head


class Exchange:
    """The state of an answer between segments: small, because thousands are open at once.

    ``body_bytes`` counts the body bytes handed to the decoder; ``counted`` sums the chunks' own token counts,
    unless one of them does not say (``NULL``);
    ``last_*`` describe the latest chunk. Times are ns since the run's start, but ``scheduled_ns`` and ``sent_ns``,
    which are CLOCK_MONOTONIC.
    """

    __slots__ = (
        "_dechunker",
        "_error",
        "_head",
        "_length",
        "_text",
        "_text_chars",
        "body_bytes",
        "chunks",
        "connection",
        "counted",
        "decoder",
        "failure",
        "finish_reason",
        "first_byte_ns",
        "first_token_ns",
        "gap_count",
        "gap_max",
        "gap_sum",
        "gaps_excluded",
        "last_read_ns",
        "last_shared",
        "last_token_ns",
        "last_true_ns",
        "multi_event_reads",
        "reads",
        "scheduled_ns",
        "sent_ns",
        "status",
        "true_first_ns",
        "usage",
    )

    def __init__(self, scheduled_ns: int, sent_ns: int, connection: int) -> None:
        self.scheduled_ns = scheduled_ns
        self.restart(sent_ns, connection)

    def restart(self, sent_ns: int, connection: int) -> None:
        """Begin (again): the request was sent on this connection at this time, or never (−1)."""
        self.sent_ns = sent_ns
        self.connection = connection
        self._head: bytes | None = b""
        self._length = 0
        self._dechunker: framing.Dechunker | None = None
        self.decoder: StreamDecoder | None = None
        self._error = b""
        self.status = NULL
        self.body_bytes = 0
        self.reads = self.multi_event_reads = self.chunks = 0
        self.gap_sum = self.gap_count = self.gap_max = self.gaps_excluded = 0
        self.first_byte_ns = self.last_read_ns = self.first_token_ns = self.last_token_ns = NULL
        self.true_first_ns = self.last_true_ns = NULL
        self.last_shared = False
        self.counted = 0
        self.usage: Usage | None = None
        self.finish_reason = ""
        self.failure: Failed | None = None
        self._text: list[str] = []
        self._text_chars = 0

    @property
    def headed(self) -> bool:
        """Whether the answer's head has come whole."""
        return self._head is None

    def take_head(self, read: bytes, heads: Heads) -> bytes:
        """Take in a read while the head is not whole; return what of it belongs to the framed body."""
        joined = (self._head or b"") + read
        blank = joined.find(b"\r\n\r\n")
        if blank < 0:
            self._head = joined
            return b""
        text, rest = joined[:blank], joined[blank + 4 :]
        head = heads.parse(text)
        if head is not None and head.status < _FIRST_FINAL:
            self._head = b""
            return self.take_head(rest, heads)
        self._head = None
        if head is None:
            self.failure = Failed(seq=0, kind="malformed", message="the answer does not begin as HTTP/1")
            return b""
        self.status = head.status
        self._length = head.length
        if head.status != HTTPStatus.OK:
            self._error = joined[: blank + 4]
        elif head.coding:
            self.failure = Failed(
                seq=0,
                kind="protocol",
                message=f"the answer is compressed ({head.coding!r}) though that was refused; "
                "switch it off in the server, or the proxy before it",
            )
        if head.length == framing.CHUNKED:
            self._dechunker = framing.Dechunker()
        return rest

    def unframe(self, reads: Sequence[bytes]) -> Sequence[bytes]:
        """Return the body bytes in each of some reads that follow the head."""
        if self._dechunker is None:
            return reads
        feed = self._dechunker.feed
        return [feed(read) for read in reads]

    def keep_error(self, body: bytes) -> None:
        """Keep an error answer's body, within bounds."""
        if len(self._error) < _ERROR_BODY:
            self._error += body[:_ERROR_BODY]

    def error_response(self) -> HttpResponse:
        """Return an answer other than 200 as it came."""
        head, _, body = self._error.partition(b"\r\n\r\n")
        return HttpResponse(status=self.status, headers=framing.parse_fields(head), body=body)

    def note(self, event: Event) -> None:
        """Take in an event that is no token."""
        if type(event) is Usage:
            self.usage = event
        elif type(event) is Completed:
            self.finish_reason = event.finish_reason
        elif type(event) is Failed and self.failure is None:
            self.failure = event
        elif type(event) is Cancelled and self.failure is None:
            self.failure = Failed(seq=event.seq, kind="aborted", message="the engine aborted the answer")

    def add_text(self, pieces: list[str]) -> None:
        """Keep increments of the answer, within bounds."""
        text = "".join(pieces)
        if self._text_chars < _TEXT_CHARS:
            self._text.append(text)
        self._text_chars += len(text)

    @property
    def text(self) -> str:
        """The answer's text as far as it is kept: the first million characters."""
        return "".join(self._text)

    def framing_fault(self, *, closed: bool) -> str:
        """Return what is wrong with the message's framing now that the exchange is over, or nothing."""
        if self.status == NULL:
            return (
                "no answer came before the connection closed" if closed else "the answer's head is not HTTP/1"
            )
        if self._dechunker is not None:
            if self._dechunker.bad:
                return "the chunked framing is broken"
            if not self._dechunker.whole:
                return "the connection closed inside the answer"
        elif self._length >= 0 and self.body_bytes != self._length:
            return f"the answer has {self.body_bytes} bytes where its head says {self._length}"
        return ""

    def answer_hash(self) -> int:
        """BLAKE2b-64 of the answer's text as a signed integer; ``NULL`` for no text."""
        if not self._text_chars:
            return NULL
        digest = blake2b(self.text.encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

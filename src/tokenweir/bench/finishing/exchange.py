"""One request's exchange as the finishing pass rebuilds it from captured reads."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple

from tokenweir.bench.engine import framing
from tokenweir.bench.finishing.spool import NULL
from tokenweir.core.events import Completed, Event, Failed, Token, Usage
from tokenweir.ports.backend import Codec, HttpResponse, StreamDecoder

_ERROR_BODY: Final = 16 << 10
_TEXT_BYTES: Final = 1 << 20


class Outcome(NamedTuple):
    """How an exchange ended: ``error`` is empty when it completed."""

    error: str
    message: str = ""


class Exchange:
    """The state of an answer between segments: small, because thousands are open at once.

    ``body_bytes`` counts the body bytes handed to the decoder; ``last_*`` describe the latest chunk.
    """

    __slots__ = (
        "_dechunker",
        "_decoder",
        "_error_body",
        "_head",
        "_length",
        "body_bytes",
        "chunks",
        "connection",
        "counted",
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
        "text",
        "text_bytes",
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
        self._decoder: StreamDecoder | None = None
        self._error_body = b""
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
        self.text: list[str] = []
        self.text_bytes = 0

    def take(self, read: bytes, decoder: StreamDecoder) -> bytes:
        """Return the body bytes in a read, framing and head taken off. ``decoder`` is used from a 200 head on."""
        if self._head is None:
            return read if self._dechunker is None else self._dechunker.feed(read)
        joined = self._head + read
        blank = joined.find(b"\r\n\r\n")
        if blank < 0:
            self._head = joined
            return b""
        head = framing.parse_head(joined[:blank])
        rest = joined[blank + 4 :]
        if head is None:
            self.failure = Failed(seq=0, kind="malformed", message="the answer does not begin as HTTP/1")
            self._head = None
            return b""
        if head.status < 200:
            self._head = b""
            return self.take(rest, decoder)
        self.status = head.status
        self._length = head.length
        self._head = None
        if head.status == 200:
            self._decoder = decoder
        else:
            self._error_body = joined[: blank + 4]
        if head.length == framing.CHUNKED:
            self._dechunker = framing.Dechunker()
            return self._dechunker.feed(rest)
        return rest

    @property
    def decoder(self) -> StreamDecoder | None:
        """The answer's decoder, once a 200 head has come."""
        return self._decoder

    def keep_error(self, body: bytes) -> None:
        """Keep an error answer's body, within bounds."""
        if len(self._error_body) < _ERROR_BODY:
            self._error_body += body[:_ERROR_BODY]

    def note(self, event: Event) -> None:
        """Take in an event that is no token."""
        match event:
            case Usage():
                self.usage = event
            case Completed():
                self.finish_reason = event.finish_reason
            case Failed():
                if self.failure is None:
                    self.failure = event
            case _:
                pass

    def add_text(self, event: Token) -> None:
        """Keep an increment's text for the hash of the answer, within bounds."""
        piece = event.text or event.reasoning
        self.text_bytes += len(piece)
        if self.text_bytes <= _TEXT_BYTES:
            self.text.append(piece)

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

    def refused(self, codec: Codec) -> Outcome:
        """Return what an answer other than 200 means."""
        head, _, body = self._error_body.partition(b"\r\n\r\n")
        response = HttpResponse(status=self.status, headers=framing.parse_fields(head), body=body)
        error = codec.error(response)
        return Outcome(error.code, str(error))

    def answer_hash(self) -> int:
        """BLAKE2b-64 of the answer's text as a signed integer; ``NULL`` for no text."""
        if not self.text:
            return NULL
        digest = blake2b("".join(self.text).encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

"""SGLang's native ``/generate``: cumulative text and ids, usage in ``meta_info``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokenweir.sim import http
from tokenweir.sim.answers import Answer, json_text
from tokenweir.sim.tokens import word_ids, words

if TYPE_CHECKING:
    from tokenweir.sim.asks import Ask
    from tokenweir.sim.connection import Connection
    from tokenweir.sim.engine import Engine
    from tokenweir.sim.pieces import Piece

_NS_PER_S: Final = 1e9
_DONE: Final = http.chunk(b"data: [DONE]\n\n")


class _Generate(Answer):
    """What the streamed and the whole form share. Scripted pieces give the text; tool calls have none."""

    __slots__ = ("_pieces",)

    def __init__(
        self, engine: Engine, conn: Connection, ask: Ask, number: int, pieces: tuple[Piece, ...] = ()
    ) -> None:
        super().__init__(engine, conn, ask, number)
        self._pieces = pieces

    def _object(self, upto: int, now_ns: int) -> bytes:
        """Return the object as it is after ``upto`` tokens."""
        if self._pieces:
            text = json_text("".join(piece.text for piece in self._pieces[:upto]))
        else:
            text = b'"%b"' % words(self.start, upto)
        given, made, cached = self.usage()
        ended = upto >= self.total
        return (
            b'{"text":%b,"output_ids":[%b],"meta_info":{"id":%b,"finish_reason":%b,"prompt_tokens":%d,'
            b'"weight_version":"default","queue_time":%.9f,"completion_tokens":%d,"cached_tokens":%d%b},"sent_ns":%d}'
            % (
                text,
                word_ids(self.start, upto),
                json_text(self.id),
                self._reason() if ended else b"null",
                given,
                (self.admitted_ns - self.received_ns) / _NS_PER_S,
                made if ended else upto,
                cached,
                self._times(now_ns) if ended else b"",
                now_ns,
            )
        )

    def _reason(self) -> bytes:
        if self.finish == "length":
            return b'{"type":"length","length":%d}' % self.total
        return b'{"type":"stop","matched":2}'

    def _times(self, now_ns: int) -> bytes:
        first = self.first_ns or now_ns
        return b',"e2e_latency":%.9f,"first_token_latency":%.9f' % (
            (now_ns - self.received_ns) / _NS_PER_S,
            (first - self.received_ns) / _NS_PER_S,
        )


class GenerateStream(_Generate):
    """A stream in which every event repeats what came before."""

    __slots__ = ()

    def chunk(self, done: int, count: int, now_ns: int) -> bytes:
        """Return the event that adds ``count`` tokens."""
        upto = done + count
        if upto >= self.total and self.fault is not None and self.fault.kind == "no-finish":
            return http.LAST_CHUNK
        return http.chunk(b"data: %b\n\n" % self._object(upto, now_ns))

    def closing(self, now_ns: int) -> bytes:
        """Return the end of the stream."""
        del now_ns
        kind = self.fault.kind if self.fault is not None else ""
        if kind == "no-finish":
            return b""
        return http.LAST_CHUNK if kind == "no-done" else _DONE + http.LAST_CHUNK


class GenerateWhole(_Generate):
    """One object with everything."""

    __slots__ = ()

    streamed = False

    def chunk(self, done: int, count: int, now_ns: int) -> bytes:
        """Return the whole answer, head included."""
        del done, count
        body = self._object(self.total, now_ns)
        return self.heading(len(body)) + body

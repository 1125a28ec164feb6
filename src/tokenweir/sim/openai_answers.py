"""OpenAI's answers: chat and text completions, streamed and whole, and embeddings."""

from __future__ import annotations

import base64
import math
import random
import struct
import time
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import msgspec

from tokenweir.sim import http
from tokenweir.sim.answers import LATE_NS, Answer, json_text
from tokenweir.sim.asks import Ask, EmbeddingAsk
from tokenweir.sim.pieces import Piece, Reply, call_id
from tokenweir.sim.tokens import CYCLE, TEXT, words
from tokenweir.sim.truth import FINE_BITS, LINEAR_NS, bin_of
from tokenweir.sim.wheel import SLOT_BITS

if TYPE_CHECKING:
    from tokenweir.sim.connection import Connection
    from tokenweir.sim.engine import Engine

SENT_WIDTH: Final = 18
"""``sent_ns`` is padded to this many characters, so that a chunk's length is known before its send time."""

_CHAT_MIDDLE: Final = b'"},"logprobs":null,"finish_reason":null}],"sent_ns":'
_TEXT_MIDDLE: Final = b'","logprobs":null,"finish_reason":null}],"sent_ns":'
_TOKEN_BYTES: Final = 5
_DONE: Final = http.chunk(b"data: [DONE]\n\n")


class _OpenAIStream(Answer):
    """What streamed chat and text completions share. ``ahead`` is each event up to the choice's index."""

    __slots__ = ("ahead", "chat", "n")

    def __init__(self, engine: Engine, conn: Connection, ask: Ask, number: int) -> None:
        super().__init__(engine, conn, ask, number)
        self.chat = ask.route == "chat"
        self.n = ask.n
        self.ahead = _ahead(self.id, self.model, chat=self.chat, chunk=True)

    def opening(self, now_ns: int) -> bytes:
        """Return the role of every choice; text completions have none."""
        if not self.chat:
            return b""
        return b"".join(
            self._event(
                b'%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]' % i,
                now_ns,
            )
            for i in range(self.n)
        )

    def closing(self, now_ns: int) -> bytes:
        """Return the finish reason of every choice, the usage if asked for, and the end."""
        fault = self.fault.kind if self.fault is not None else ""
        if fault == "no-finish":
            return http.LAST_CHUNK
        inner = b'"delta":{}' if self.chat else b'"text":""'
        parts = [
            self._event(
                b'%d,%b,"logprobs":null,"finish_reason":"%b"}]' % (i, inner, self.finish.encode()), now_ns
            )
            for i in range(self.n)
        ]
        if self.include_usage:
            base = self.ahead.removesuffix(b'{"index":')
            usage = self.usage_json(self.n, self.reasoning_tokens())
            parts.append(http.chunk(b'%b],"usage":%b,"sent_ns":%d}\n\n' % (base, usage, now_ns)))
        parts.append(b"" if fault == "no-done" else _DONE)
        parts.append(http.LAST_CHUNK)
        return b"".join(parts)

    def reasoning_tokens(self) -> int:
        """Return how many of the output tokens are reasoning."""
        return 0

    def _event(self, rest: bytes, now_ns: int) -> bytes:
        return http.chunk(b'%b%b,"sent_ns":%d}\n\n' % (self.ahead, rest, now_ns))


class WordStream(_OpenAIStream):
    """A stream of plain words: nothing is encoded per chunk, only joined.

    ``quick_until`` is the token up to which :meth:`step` may take the short way.
    """

    __slots__ = ("_base", "_frame", "_middle", "_prefixes", "quick_until")

    def __init__(self, engine: Engine, conn: Connection, ask: Ask, number: int) -> None:
        super().__init__(engine, conn, ask, number)
        inner = b'"delta":{"content":"' if self.chat else b'"text":"'
        self._middle = _CHAT_MIDDLE if self.chat else _TEXT_MIDDLE
        self._prefixes = tuple(b"%b%d,%b" % (self.ahead, i, inner) for i in range(self.n))
        self._base = len(self._prefixes[0]) + len(self._middle) + SENT_WIDTH + len(b"}\n\n")
        self._frame = b"%x\r\n%b" % (self._base + _TOKEN_BYTES, self._prefixes[0])
        self.quick_until = 0

    def begin(self) -> None:
        """Find out how far the short way leads: before the last token and any fault, one token to a chunk."""
        if self.n == 1 and self.engine.several is None:
            self.quick_until = min(self.total - 1, self.trip, 2 * CYCLE - self.start)

    def chunk(self, done: int, count: int, now_ns: int) -> bytes:
        """Return ``count`` words for every choice."""
        text = words(self.start + done, count)
        data = b"%x\r\n%b%b%b%18d}\n\n\r\n" % (
            self._base + _TOKEN_BYTES * count,
            self._prefixes[0],
            text,
            self._middle,
            now_ns,
        )
        if self.n == 1:
            return data
        more = (b"%b%b%b%18d}\n\n" % (prefix, text, self._middle, now_ns) for prefix in self._prefixes[1:])
        return data + b"".join(map(http.chunk, more))

    def step(self) -> None:
        """Send the next chunk: what :meth:`Answer.step` does, written out for the chunks in the middle."""
        done = self.done
        conn = self.conn
        if not 0 < done < self.quick_until or conn is None or conn.pending:
            super().step()
            return
        engine = self.engine
        at = _TOKEN_BYTES * (self.start + done)
        now = monotonic_ns()
        data = b"%b%b%b%18d}\n\n\r\n" % (self._frame, TEXT[at : at + _TOKEN_BYTES], self._middle, now)
        gap = now - self.last_ns
        engine.gap_bins[gap >> FINE_BITS if gap < LINEAR_NS else bin_of(gap)] += 1
        self.last_ns = now
        self.done = done = done + 1
        due = self.due_ns
        if now - due > LATE_NS:
            engine.truth.late += 1
            due = now
        try:
            sent = conn.transmit(data)
        except OSError:
            sent = 0
        if sent != len(data):
            conn.send(data[sent:])
        table = self.itl
        gap = table.values[(self.phase + done) & table.mask]
        if engine.factor != 1.0:
            gap = int(gap * engine.factor)
        self.due_ns = due = due + gap
        slot = engine.wheel.slots.get((due >> SLOT_BITS) + 1)
        if slot is None:
            engine.wheel.add(due, self)
        else:
            slot.append(self)


class PieceStream(_OpenAIStream):
    """A stream of pieces made in advance: scripted text, reasoning, tool calls."""

    __slots__ = ("pieces",)

    def __init__(
        self, engine: Engine, conn: Connection, ask: Ask, number: int, pieces: tuple[Piece, ...]
    ) -> None:
        super().__init__(engine, conn, ask, number)
        self.pieces = pieces

    def chunk(self, done: int, count: int, now_ns: int) -> bytes:
        """Return the pieces, one event each and all in one send."""
        parts: list[bytes] = []
        for piece in self.pieces[done : done + count]:
            inner = b'"delta":{%b}' % piece.delta if self.chat else b'"text":' + json_text(piece.text)
            parts += [
                self._event(b'%d,%b,"logprobs":null,"finish_reason":null}]' % (i, inner), now_ns)
                for i in range(self.n)
            ]
        return b"".join(parts)

    def reasoning_tokens(self) -> int:
        """Return how many pieces sent are reasoning."""
        return sum(piece.kind == "reasoning" for piece in self.pieces[: self.total])


class WholeAnswer(Answer):
    """A chat or text completion that comes at once."""

    __slots__ = ("chat", "n", "pieces", "reply")

    streamed = False

    def __init__(
        self,
        engine: Engine,
        conn: Connection,
        ask: Ask,
        number: int,
        reply: tuple[Reply, tuple[Piece, ...]] | None = None,
    ) -> None:
        super().__init__(engine, conn, ask, number)
        self.chat = ask.route == "chat"
        self.n = ask.n
        self.reply, self.pieces = reply if reply is not None else (None, ())

    def chunk(self, done: int, count: int, now_ns: int) -> bytes:
        """Return the whole answer, head included."""
        del done, count
        body = self.body(now_ns)
        return self.heading(len(body)) + body

    def body(self, now_ns: int) -> bytes:
        """Return the JSON body."""
        inner = self._message() if self.chat else b'"text":' + self._content()
        choices = b",".join(
            b'{"index":%d,%b,"logprobs":null,"finish_reason":"%b"}' % (i, inner, self.finish.encode())
            for i in range(self.n)
        )
        return b'%b%b],"usage":%b,"sent_ns":%d}' % (
            _ahead(self.id, self.model, chat=self.chat, chunk=False),
            choices,
            self.usage_json(self.n, sum(one.kind == "reasoning" for one in self.pieces[: self.total])),
            now_ns,
        )

    def _content(self) -> bytes:
        if self.reply is None:
            return b'"%b"' % words(self.start, self.total)
        return json_text("".join(one.text for one in self.pieces[: self.total] if one.kind == "text"))

    def _message(self) -> bytes:
        if self.reply is None:
            return b'"message":{"role":"assistant","content":%b}' % self._content()
        message: dict[str, object] = {"role": "assistant", "content": self.reply.text or None}
        if self.reply.reasoning:
            message["reasoning_content"] = self.reply.reasoning
        if self.reply.calls:
            message["tool_calls"] = [
                {
                    "id": call_id(i, one),
                    "type": "function",
                    "function": {"name": one.name, "arguments": one.arguments},
                }
                for i, one in enumerate(self.reply.calls)
            ]
        return b'"message":' + msgspec.json.encode(message)


class EmbeddingAnswer(Answer):
    """Vectors of length 1, the same for the same input."""

    __slots__ = ("_asked",)

    streamed = False

    def __init__(self, engine: Engine, conn: Connection, asked: EmbeddingAsk, number: int) -> None:
        ask = Ask("embedding", asked.model, "", sum(tokens for tokens, _ in asked.inputs))
        super().__init__(engine, conn, ask, number)
        self._asked = asked

    def chunk(self, done: int, count: int, now_ns: int) -> bytes:
        """Return the whole answer, head included."""
        del done, count
        asked = self._asked
        size = asked.size or self.engine.options.embedding_size
        data: list[dict[str, object]] = []
        for index, (_, seed) in enumerate(asked.inputs):
            vector = _vector(seed, size)
            shown = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if asked.base64 else vector
            data.append({"object": "embedding", "index": index, "embedding": shown})
        given = self.usage()[0]
        body = msgspec.json.encode(
            {
                "object": "list",
                "model": self.model,
                "data": data,
                "usage": {"prompt_tokens": given, "total_tokens": given},
                "sent_ns": now_ns,
            }
        )
        return self.heading(len(body)) + body


def _vector(seed: int, size: int) -> list[float]:
    rng = random.Random(seed)
    values = [rng.gauss(0.0, 1.0) for _ in range(size)]
    norm = math.sqrt(math.fsum(value * value for value in values))
    return [value / norm for value in values]


def _ahead(answer_id: str, model: str, *, chat: bool, chunk: bool) -> bytes:
    """Return an OpenAI object up to its first choice; of a chunk, up to the choice's index."""
    prefix, kind = ("chatcmpl-", "chat.completion") if chat else ("cmpl-", "text_completion")
    if chunk and chat:
        kind += ".chunk"
    return b'%b{"id":%b,"object":"%b","created":%d,"model":%b,"choices":[%b' % (
        b"data: " if chunk else b"",
        json_text(prefix + answer_id),
        kind.encode(),
        time.time(),
        json_text(model),
        b'{"index":' if chunk else b"",
    )

"""An answer on its way: one object per request, stepped by the timing wheel once per chunk."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import msgspec

from tokenweir.sim import http
from tokenweir.sim.faults import Fault
from tokenweir.sim.tokens import CYCLE
from tokenweir.sim.truth import FINE_BITS, LINEAR_NS, bin_of

if TYPE_CHECKING:
    from tokenweir.sim.asks import Ask
    from tokenweir.sim.connection import Connection
    from tokenweir.sim.engine import Engine

LATE_NS: Final = 1_000_000
"""A chunk sent this long after it was due counts as late: the simulator itself is overloaded.

What follows a late chunk keeps its distance from it: catching up would send tokens in bunches, which no engine does.
"""

_BROKEN_EVENT: Final = b'data: {"id":"broken","choices":[{"index":0,\n\n'
_ERROR: Final = b'{"error":{"message":"Simulated failure.","type":"server_error","code":500}}'
_MIDWAY: Final = frozenset({"stall", "disconnect", "reset", "malformed", "error"})
_FIRST_LINE: Final = b"HTTP/1.1 200 OK\r\n"
_STREAM_HEAD: Final = http.head(200, http.SSE, extra=(("cache-control", "no-store"),))
NEVER: Final = 1 << 62


class Answer:
    """One request from its last byte to its answer's last.

    ``conn`` is ``None`` once the client has left. ``done`` of ``total`` output tokens are sent; the next
    chunk holds ``count``. ``trip`` is the token before which a fault strikes. ``phase`` is where in the
    tables of draws the answer stands, ``multi_ns`` the sum of its gaps before chunks of several tokens.
    """

    __slots__ = (
        "admitted_ns",
        "cached",
        "conn",
        "content_type",
        "count",
        "done",
        "due_ns",
        "engine",
        "fault",
        "finish",
        "first_ns",
        "id",
        "include_usage",
        "input_tokens",
        "itl",
        "keep_alive",
        "last_ns",
        "model",
        "multi_ns",
        "phase",
        "received_ns",
        "reserved_tokens",
        "running",
        "skip",
        "start",
        "total",
        "trip",
        "ttft",
        "usage_factor",
    )

    streamed = True
    """Whether the tokens are sent as they come; else all at once at the end."""

    def __init__(self, engine: Engine, conn: Connection, ask: Ask, number: int) -> None:
        self.engine = engine
        self.conn: Connection | None = conn
        self.id = f"{engine.salt}{number:012x}" if ask.rid is None else ask.rid
        self.model = ask.model or engine.options.model
        self.input_tokens = ask.input_tokens
        self.include_usage = ask.include_usage
        self.keep_alive = conn.keep_alive
        self.start = ask.seed % CYCLE
        self.cached = 0
        self.total = 1
        self.finish = "length"
        self.reserved_tokens = 0
        self.running = False
        self.done = 0
        self.count = 1
        self.phase = 0
        self.ttft = engine.ttft
        self.itl = engine.itl
        self.received_ns = self.admitted_ns = self.due_ns = 0
        self.first_ns = self.last_ns = 0
        self.multi_ns = 0
        self.trip = NEVER
        self.fault: Fault | None = None
        self.usage_factor = 1.0
        self.skip = 0
        self.content_type = http.SSE if self.streamed else http.JSON

    # What a kind of answer says; each returns bytes ready for the wire.

    def chunk(self, done: int, count: int, now_ns: int) -> bytes:
        """Return the HTTP chunk with tokens ``done`` to ``done + count``, said to be sent at ``now_ns``."""
        raise NotImplementedError

    def opening(self, now_ns: int) -> bytes:
        """Return what goes before the first token, the response head left out."""
        del now_ns
        return b""

    def closing(self, now_ns: int) -> bytes:
        """Return what goes after the last token."""
        del now_ns
        return b""

    # What happens to it.

    def begin(self) -> None:
        """Prepare for the first step, once all is decided."""

    def step(self) -> None:
        """Send the next chunk and set the time of the one after it."""
        conn = self.conn
        if conn is None:
            return
        engine = self.engine
        truth = engine.truth
        if conn.pending:
            # The client does not keep up: the chunk waits, so that its send time stays true.
            conn.starved = True
            truth.blocked += 1
            return
        done = self.done
        if done >= self.trip and self._strike():
            return
        count = self.count
        now = monotonic_ns()
        data = self.chunk(done, count, now)
        last = self.last_ns
        if last:
            gap = now - last
            if count == 1 and gap < LINEAR_NS:
                truth.gaps.bins[gap >> FINE_BITS] += 1
            else:
                self._wide_gap(gap, count)
        else:
            data = self._first(now) + data
        self.last_ns = now
        self.done = done = done + count
        due = self.due_ns
        if now - due > LATE_NS:
            truth.late += 1
            due = now
        if done >= self.total:
            conn.send(data + self.closing(now))
            if self.conn is not None:
                engine.finish(self)
            return
        conn.send(data)
        table = self.itl
        gap = table.values[(self.phase + done) & table.mask]
        if engine.several is not None:
            self.count = count = engine.chunk_tokens(self)
            gap *= count
        if engine.factor != 1.0:
            gap = int(gap * engine.factor)
        self.due_ns = due = due + gap
        engine.wheel.add(due, self)

    def resume(self) -> None:
        """Go on after the client has read what was pending."""
        self.due_ns = monotonic_ns()
        self.step()

    def heading(self, length: int | None = None) -> bytes:
        """Return what of the response head has not been sent yet; ``length`` is that of a whole body."""
        if length is None and self.content_type is http.SSE and self.keep_alive:
            head = _STREAM_HEAD
        else:
            head = http.head(200, self.content_type, length=length, keep_alive=self.keep_alive)
        skip, self.skip = self.skip, len(head)
        return head[skip:] if skip else head

    def open_early(self, *, whole: bool) -> None:
        """Send the response head before there is a token, or only its first line."""
        if self.conn is None:
            return
        if whole:
            self.conn.send(self.heading())
        else:
            self.skip = len(_FIRST_LINE)
            self.conn.send(_FIRST_LINE)

    def _first(self, now_ns: int) -> bytes:
        self.first_ns = now_ns
        if not self.streamed:
            return b""
        self.engine.truth.ttft.add(now_ns - self.received_ns)
        return self.heading() + self.opening(now_ns)

    def _wide_gap(self, gap_ns: int, count: int) -> None:
        """Count a gap that the short way in :meth:`step` does not."""
        truth = self.engine.truth
        if count == 1:
            truth.gaps.bins[bin_of(gap_ns)] += 1
        else:
            truth.multi_gaps.bins[bin_of(gap_ns)] += 1
            self.multi_ns += gap_ns

    # Faults.

    def suffer(self, fault: Fault) -> None:
        """Plan a fault that strikes while the answer is under way."""
        self.fault = fault
        if fault.kind in _MIDWAY:
            self.trip = min(fault.after, self.total - 1) if self.streamed else 0
        elif fault.kind == "wrong-usage":
            self.usage_factor = fault.factor
        elif fault.kind == "content-type":
            self.content_type = fault.value

    def _strike(self) -> bool:
        """Let the fault happen; return whether the answer goes no further now."""
        fault, conn, engine = self.fault, self.conn, self.engine
        self.trip = NEVER
        if fault is None or conn is None:
            return False
        now = monotonic_ns()
        match fault.kind:
            case "stall":
                self.due_ns = now + fault.for_ns
                engine.wheel.add(self.due_ns, self)
                return True
            case "disconnect" | "reset":
                if not self.streamed:
                    whole = self.chunk(0, self.total, now)
                    conn.send(whole[: len(whole) - len(whole) // 4])
                conn.drop(reset=fault.kind == "reset")
                return True
            case "malformed" if self.streamed:
                conn.send(self.heading() + http.chunk(_BROKEN_EVENT))
                return self.conn is None
            case _:
                self._break_off(fault)
                return True

    def _break_off(self, fault: Fault) -> None:
        """End a streamed answer with an error object, a whole one with an error or broken JSON."""
        conn = self.conn
        if conn is None:
            return
        if self.streamed:
            conn.send(self.heading() + http.chunk(b"data: " + _ERROR + b"\n\n") + http.LAST_CHUNK)
        else:
            body = _ERROR if fault.kind == "error" else b'{"id":"broken","choices":[{"index":0,'
            conn.send(self.heading(len(body)) + body)
        self.engine.finish(self, failed=True)

    # What several kinds say alike.

    def usage(self) -> tuple[int, int, int]:
        """Return input, output and cached tokens as the answer states them."""
        if self.usage_factor == 1.0:
            return self.input_tokens, self.total, self.cached
        return (
            round(self.input_tokens * self.usage_factor),
            round(self.total * self.usage_factor),
            self.cached,
        )

    def usage_json(self, choices: int = 1, reasoning: int = 0) -> bytes:
        """Return OpenAI's usage object."""
        given, made, cached = self.usage()
        made *= choices
        return (
            b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":'
            b'{"cached_tokens":%d},"completion_tokens_details":{"reasoning_tokens":%d}}'
            % (given, made, given + made, cached, reasoning)
        )


def json_text(value: str) -> bytes:
    """Return a string as JSON."""
    return msgspec.json.encode(value)

"""The engine's double: what a request costs, when it may run, and what becomes of it."""

from __future__ import annotations

import random
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from tokenweir.core.units import parse_duration
from tokenweir.sim.answers import Answer
from tokenweir.sim.batch import Batch
from tokenweir.sim.distributions import Table, counts, durations, geometric
from tokenweir.sim.faults import Fault, FaultPlan
from tokenweir.sim.http import HttpError
from tokenweir.sim.openai_answers import EmbeddingAnswer, PieceStream, WholeAnswer, WordStream
from tokenweir.sim.options import Options
from tokenweir.sim.pieces import Reply, pieces_of, wanted_reply
from tokenweir.sim.prefix import PrefixCache
from tokenweir.sim.script import Entry, read_script
from tokenweir.sim.sglang_answers import GenerateStream, GenerateWhole
from tokenweir.sim.tokens import counter
from tokenweir.sim.truth import Truth
from tokenweir.sim.wheel import TimingWheel

if TYPE_CHECKING:
    from tokenweir.sim.asks import Ask, EmbeddingAsk
    from tokenweir.sim.connection import Connection

_POSITION_BITS: Final = 30


class Engine:
    """Answers requests as the options say.

    ``factor`` is what the batch's size makes of every ITL; ``several`` the table of tokens per chunk,
    ``None`` where each chunk holds one; ``gap_bins`` the bins of ``truth.gaps``, for the hot path.
    """

    def __init__(self, options: Options) -> None:
        self.wheel: TimingWheel[Answer] = TimingWheel()
        self.truth = Truth(monotonic_ns())
        self.gap_bins = self.truth.gaps.bins
        self.salt = f"{monotonic_ns() & 0xFFFF_FFFF:08x}"
        self.factor = 1.0
        self.active: dict[str, Answer] = {}
        self.batch: Batch[Answer] = Batch(max_running=0, max_waiting=0, kv_tokens=0)
        self.configure(options)

    def configure(self, options: Options) -> None:
        """Take on new options; answers under way keep the pace they began with. Raises ConfigError."""
        seed = options.seed
        itl = durations(options.itl, what="itl", seed=seed)
        ttft = durations(options.ttft, what="ttft", seed=seed)
        several = counts(options.tokens_per_chunk, what="tokens_per_chunk", seed=seed)
        output = None
        if options.output_tokens != "max":
            output = counts(options.output_tokens, what="output_tokens", seed=seed)
        prefill_ns = parse_duration(options.prefill, what="prefill")
        faults = FaultPlan(options.faults, seed=seed)
        script = read_script(options.script, seed=seed)
        count = counter(options.tokenizer)
        self.options = options
        self.itl: Table = itl
        self.ttft: Table = ttft
        self.several: Table | None = None if several.constant == 1 else several
        self.output: Table | None = output
        self.eos: Table | None = geometric(options.eos, seed=seed) if options.eos > 0 else None
        self.prefill_ns = prefill_ns
        self.faults = faults
        self.script: tuple[Entry, ...] = script
        self.count_tokens = count
        self.prefixes = PrefixCache(options.prefix_cache_tokens)
        self.batch.max_running = options.max_batch
        self.batch.max_waiting = options.max_waiting
        self.batch.kv_tokens = options.kv_tokens
        self._rng = random.Random(f"phases:{seed}")
        self._number = 0
        self._pace()

    def reset(self) -> None:
        """Forget what was measured and start the seeded sequences anew."""
        self.truth.reset(monotonic_ns())
        self.faults = FaultPlan(self.options.faults, seed=self.options.seed)
        self._rng = random.Random(f"phases:{self.options.seed}")
        self._number = 0

    # Requests.

    def next_fault(self, header: Fault | None) -> Fault | None:
        """Count a request and return what befalls it: the header's fault, else what the rules pick."""
        self._number += 1
        self.truth.received += 1
        planned = self.faults.pick(self._number)
        fault = header if header is not None else planned
        if fault is not None:
            self.truth.faults += 1
        return fault

    def answer_text(self, conn: Connection, ask: Ask, fault: Fault | None, now_ns: int) -> None:
        """Take on a request for text. Raises HttpError when it can never run, or when the queue is full."""
        entry = next((one for one in self.script if one.matches(ask.text)), None) if self.script else None
        reply = entry.reply if entry is not None else None
        if reply is None and (ask.tools or ask.response_format):
            reply = wanted_reply(ask.tools, ask.tool_choice, ask.response_format)
        answer = self._make(conn, ask, reply)
        phase = answer.phase = self._rng.getrandbits(_POSITION_BITS)
        limit = ask.max_tokens or self.options.default_tokens
        room = self.options.context_tokens - ask.input_tokens
        if ask.input_tokens + (ask.max_tokens or 1) > self.options.context_tokens:
            raise HttpError(
                400,
                f"This model's maximum context length is {self.options.context_tokens} tokens, but the "
                f"request has {ask.input_tokens} input tokens and asks for {ask.max_tokens or 1} more.",
            )
        limit = min(limit, room)
        if reply is not None:
            length = max(1, len(pieces_of(reply)))
            ending = reply.finish_reason
        else:
            length, ending = self._length(phase, limit, ignore_eos=ask.ignore_eos), "stop"
        answer.total = min(length, limit)
        answer.finish = "length" if length > limit or (reply is None and length == limit) else ending
        answer.reserved_tokens = ask.input_tokens + limit
        answer.cached = self.prefixes.match(ask.prompt, ask.input_tokens)
        if entry is not None:
            answer.ttft = entry.ttft or answer.ttft
            answer.itl = entry.itl or answer.itl
            if fault is None and entry.fault is not None:
                fault = entry.fault
                self.truth.faults += 1
        self._admit(conn, answer, fault, now_ns)

    def answer_embedding(
        self, conn: Connection, asked: EmbeddingAsk, fault: Fault | None, now_ns: int
    ) -> None:
        """Take on a request for vectors. Raises HttpError when it can never run or the queue is full."""
        answer = EmbeddingAnswer(self, conn, asked, self._number)
        answer.phase = self._rng.getrandbits(_POSITION_BITS)
        answer.reserved_tokens = answer.input_tokens
        self._admit(conn, answer, fault, now_ns)

    def chunk_tokens(self, answer: Answer) -> int:
        """Return how many tokens the answer's next chunk holds."""
        table = self.several
        if table is None:
            return 1
        return min(table.values[(answer.phase + answer.done) & table.mask], answer.total - answer.done)

    def finish(self, answer: Answer, *, failed: bool = False) -> None:
        """Settle an answer whose last byte is on its way."""
        conn = answer.conn
        self._settle(answer)
        truth = self.truth
        if not failed:
            truth.completed += 1
            truth.input_tokens += answer.input_tokens
        if conn is not None:
            conn.answered()
        self._let_in()

    def cancel(self, answer: Answer) -> None:
        """Settle an answer that nobody waits for any more."""
        self._settle(answer)
        self.truth.aborted += 1
        self._let_in()

    def abort(self, answer_id: str | None) -> int:
        """Break off the answer called so, or all; return how many."""
        chosen = [one for name, one in self.active.items() if answer_id is None or name == answer_id]
        for answer in chosen:
            answer.finish = "abort"
            conn = answer.conn
            if conn is not None and answer.streamed and answer.running:
                conn.send(answer.heading() + answer.closing(monotonic_ns()))
            elif conn is not None:
                conn.drop()
            if answer.conn is not None:
                self.finish(answer, failed=True)
        return len(chosen)

    # What they go through.

    def _make(self, conn: Connection, ask: Ask, reply: Reply | None) -> Answer:
        number = self._number
        pieces = pieces_of(reply) if reply is not None else ()
        if ask.route == "generate":
            kind = GenerateStream if ask.stream else GenerateWhole
            return kind(self, conn, ask, number, pieces)
        if not ask.stream:
            return WholeAnswer(self, conn, ask, number, (reply, pieces) if reply is not None else None)
        if reply is not None:
            return PieceStream(self, conn, ask, number, pieces)
        return WordStream(self, conn, ask, number)

    def _length(self, phase: int, limit: int, *, ignore_eos: bool) -> int:
        """Return how long the model would talk; ``limit`` where it would not stop by itself."""
        if ignore_eos:
            return limit
        length = limit
        if self.output is not None:
            length = self.output.values[phase & self.output.mask]
        if self.eos is not None:
            length = min(length, self.eos.values[phase & self.eos.mask])
        return length

    def _admit(self, conn: Connection, answer: Answer, fault: Fault | None, now_ns: int) -> None:
        if not self.batch.fits(answer):
            raise HttpError(
                400,
                f"The request needs {answer.reserved_tokens} tokens of KV cache; "
                f"there are {self.batch.kv_tokens} in all.",
            )
        if fault is not None:
            answer.suffer(fault)
        answer.received_ns = now_ns
        if self.batch.offer(answer):
            conn.answer = answer
            self.active[answer.id] = answer
            self._begin(answer, now_ns)
        elif self.batch.max_waiting and len(self.batch.waiting) > self.batch.max_waiting:
            self.batch.withdraw(answer)
            raise HttpError(503, "The waiting queue is full.")
        else:
            conn.answer = answer
            self.active[answer.id] = answer
            self.truth.max_waiting = max(self.truth.max_waiting, len(self.batch.waiting))
        self._pace()

    def _begin(self, answer: Answer, now_ns: int) -> None:
        """Start an admitted answer: set when its first token, or the whole of it, is due."""
        truth = self.truth
        truth.max_running = max(truth.max_running, self.batch.running)
        truth.queue.add(now_ns - answer.received_ns)
        answer.running = True
        answer.admitted_ns = now_ns
        ttft = answer.ttft
        delay = ttft.values[answer.phase & ttft.mask] + self.prefill_ns * (
            answer.input_tokens - answer.cached
        )
        if not answer.streamed:
            answer.count = answer.total
            if answer.total > 1:
                delay += int(answer.itl.total(answer.phase + 1, answer.total - 1) * self.factor)
        elif self.several is not None:
            answer.count = self.chunk_tokens(answer)
        if answer.fault is not None:
            delay = self._begin_badly(answer, answer.fault, delay)
        elif self.options.early_headers and answer.streamed:
            answer.open_early(whole=True)
        answer.begin()
        answer.due_ns = now_ns + delay
        if delay:
            self.wheel.add(answer.due_ns, answer)
        else:
            answer.step()

    def _begin_badly(self, answer: Answer, fault: Fault, delay: int) -> int:
        """Let a fault of the answer's beginning happen; return the delay that it leaves."""
        if fault.kind == "slow-headers":
            answer.open_early(whole=False)
            return max(delay, fault.for_ns)
        return delay

    def _let_in(self) -> None:
        now = 0
        while self.batch.waiting:
            admitted = self.batch.admit()
            if not admitted:
                break
            now = now or monotonic_ns()
            for answer in admitted:
                self._begin(answer, now)
        self._pace()

    def _settle(self, answer: Answer) -> None:
        """Take an answer out of the batch or the queue and out of its connection."""
        truth = self.truth
        if answer.running:
            answer.running = False
            self.batch.leave(answer)
        elif answer.conn is not None:
            self.batch.withdraw(answer)
        truth.output_tokens += answer.done
        # The gaps of an answer add up to its length, so none has to be added on the way.
        truth.multi_gaps.total_ns += answer.multi_ns
        if answer.streamed:
            truth.gaps.total_ns += answer.last_ns - answer.first_ns - answer.multi_ns
        self.active.pop(answer.id, None)
        answer.conn = None

    def _pace(self) -> None:
        slowdown = self.options.slowdown
        self.factor = 1.0 + slowdown * max(0, self.batch.running - 1) if slowdown else 1.0

"""The batch lane: continuous batching on MLX LM's ``BatchGenerator``.

Sequences join between steps and leave when they end. A prompt is read in pieces, so that it does not hold up those
that are answering. A sequence that is held goes on for a few tokens, which wait here, before it is taken out of the
batch with its cache: taking out and putting back copies the whole batch's cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from tokenweir.ports.inference import Broken, Drawn, StepEvent, StepLimits
from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.cpu_model import fastest
from tokenweir.runtime.engines.mlx.framework import Cache, Model, TokenResponse
from tokenweir.runtime.engines.mlx.kept_prompts import LEAST, KeptPrompts
from tokenweir.runtime.engines.mlx.lean_batch import put_in
from tokenweir.runtime.engines.mlx.rows import Finish, Row, broken
from tokenweir.runtime.engines.mlx.sampling import likeliest, sampler

PREFILL_BATCH: Final = 8
"""Prompts that are read together; more where all of them are short: each time that some join copies all caches."""

RUN_AHEAD: Final = 8
"""Tokens that a held sequence is ahead of its reader before it leaves the batch."""


class _Parked:
    """A held sequence outside the batch: its cache, and the tokens in it."""

    __slots__ = ("cache", "tokens")

    def __init__(self, cache: Cache, tokens: list[int]) -> None:
        self.cache = cache
        self.tokens = tokens


class BatchLane:
    """Decodes many sequences together, a token each per step."""

    def __init__(self, model: Model, kept: KeptPrompts | None) -> None:
        self._kept = kept
        with framework.device_stream():
            self._forward = fastest(model)
        self._trimmable = framework.always_trimmable(model)
        self._generator = framework.batching(self._forward, batch=PREFILL_BATCH, prefill_batch=PREFILL_BATCH)
        self._lean = put_in(self._generator)
        self._waiting: deque[Row] = deque()
        self._rows: dict[int, Row] = {}
        self._uids: dict[int, Row] = {}
        self._uid_of: dict[int, int] = {}
        self._reading: set[int] = set()
        self._parked: dict[int, _Parked] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def insert(self, row: Row) -> None:
        """Take a sequence on; it joins the batch when there is room."""
        self._rows[row.id] = row
        self._waiting.append(row)

    def remove(self, sequences: Sequence[int]) -> None:
        """Forget sequences, wherever they are."""
        gone = {sequence for sequence in sequences if self._rows.pop(sequence, None) is not None}
        if not gone:
            return
        self._waiting = deque(row for row in self._waiting if row.id not in gone)
        for sequence in gone:
            self._parked.pop(sequence, None)
        self._take_out(gone)

    def close(self) -> None:
        """Forget everything and give back what the device keeps."""
        self.remove(list(self._rows))
        self._generator.close()

    def step(self, limits: StepLimits) -> list[StepEvent]:
        """Advance every sequence that is not held by a token, and the prompts in turn by a piece."""
        events: list[StepEvent] = []
        try:
            self._arrange(limits)
            if self._uids:
                self._advance(limits, events)
        except Exception as error:  # noqa: BLE001 - one computation: what fails in it fails all of the batch
            self._give_up(error)
        self._hand_on(limits.held, events)
        return events

    def _arrange(self, limits: StepLimits) -> None:
        """Take out who is held, put back who no longer is, and let in who waits."""
        if limits.held or self._parked:
            self._park(limits.held)
            self._unpark(limits.held)
        if not self._waiting:
            return
        for _ in range(min(max(1, limits.batch) - len(self._uids), len(self._waiting))):
            if len(self._reading) >= PREFILL_BATCH and not self._fits(limits.prefill_tokens):
                break
            self._join(self._waiting.popleft())
        self._generator.prefill_batch_size = max(PREFILL_BATCH, len(self._reading))

    def _fits(self, tokens: int) -> bool:
        """Return whether the next prompt and those being read are so short that one piece holds them all."""
        lengths = [len(self._waiting[0].prompt), *(len(self._uids[uid].prompt) for uid in self._reading)]
        return max(lengths) * len(lengths) <= tokens

    def _advance(self, limits: StepLimits, events: list[StepEvent]) -> None:
        generator = self._generator
        generator.completion_batch_size = max(len(self._uids), 1)
        # Prompts are padded to the longest piece among them, so equal shares cost what they say.
        generator.prefill_step_size = max(1, limits.prefill_tokens // max(1, len(self._reading)))
        read, drawn = generator.next()
        for response in drawn:
            self._draw(response, limits.held, events)
        for prompt in read:
            if prompt.uid not in self._reading:
                continue
            row = self._uids[prompt.uid]
            if prompt.end_of_prompt:
                self._reading.discard(prompt.uid)
                if row.drawn == 0:
                    events.append(row.prefilled())
            elif prompt.end_of_segment:
                self._keep_prompt(row, prompt.uid)

    def _draw(self, response: TokenResponse, held: frozenset[int], events: list[StepEvent]) -> None:
        row = self._uids[response.uid]
        row.drawn += 1
        finish: Finish = "stop" if response.finish_reason == "stop" else ""
        if not finish and response.finish_reason is not None:
            finish = "length"
        event = row.failed() or _drawn(row, response, finish)
        if finish or isinstance(event, Broken):
            self._end(row, response, finished=bool(finish))
        if row.pending or row.id in held:
            row.pending.append(event)
            return
        events.append(event)
        if row.ended:
            del self._rows[row.id]

    def _end(self, row: Row, response: TokenResponse, *, finished: bool) -> None:
        """The row leaves the batch; what it computed is kept for sequences that begin alike."""
        row.ended = True
        if not finished:
            self._take_out({row.id})
            return
        del self._uids[response.uid]
        del self._uid_of[row.id]
        tokens, cache = response.all_tokens, response.prompt_cache
        if self._kept is not None and row.sequence.use_prefix_cache and tokens and cache:
            self._kept.keep(tuple(tokens), cache)

    def _hand_on(self, held: frozenset[int], events: list[StepEvent]) -> None:
        """Give each sequence that lags behind itself, and is not held, the next of what it has drawn."""
        for row in [row for row in self._rows.values() if row.pending and row.id not in held]:
            events.append(row.pending.popleft())
            if row.ended and not row.pending:
                del self._rows[row.id]

    def _join(self, row: Row) -> None:
        """Put a new sequence into the generator, with as much of its prompt as is known already."""
        begun = (
            self._kept.find(row.prompt) if self._kept is not None and row.sequence.use_prefix_cache else None
        )
        row.cached = begun.tokens if begun is not None else 0
        self._insert(row, list(row.prompt), begun.cache if begun is not None else None, row.cached)

    def _insert(self, row: Row, tokens: list[int], cache: Cache | None, known: int) -> None:
        """Put ``tokens``, of which ``cache`` holds the first ``known``, into the generator."""
        (uid,) = self._generator.insert(
            [tokens[known:]],
            max_tokens=[row.left],
            caches=[cache],
            all_tokens=[tokens[:known]],
            samplers=[sampler(row.sequence.decoding)],
            logits_processors=[row.processors],
            stop_sequences=[framework.stop_at(row.stops)],
        )
        self._uids[uid] = row
        self._uid_of[row.id] = uid
        if self._lean is not None and row.sequence.decoding.logprobs is not None:
            self._lean.wanted = frozenset({uid, *(self._lean.wanted & self._uids.keys())})
        self._reading.add(uid)

    def _park(self, held: frozenset[int]) -> None:
        if not self._trimmable:
            return
        for sequence in held & self._uid_of.keys():
            row, uid = self._rows[sequence], self._uid_of[sequence]
            if len(row.pending) < RUN_AHEAD or uid in self._reading:
                continue
            cache, tokens = self._generator.extract_cache([uid])[uid]
            self._parked[sequence] = _Parked(cache, list(tokens))
            self._take_out({sequence})

    def _unpark(self, held: frozenset[int]) -> None:
        for sequence in [sequence for sequence in self._parked if sequence not in held]:
            row = self._rows[sequence]
            if len(row.pending) > RUN_AHEAD // 2:
                continue
            parked = self._parked.pop(sequence)
            # The last token is read again: what follows it was drawn, but never came out of the generator.
            framework.trim(parked.cache, 1)
            self._insert(row, parked.tokens, parked.cache, len(parked.tokens) - 1)

    def _take_out(self, sequences: set[int]) -> None:
        uids = [self._uid_of.pop(sequence) for sequence in sequences if sequence in self._uid_of]
        if uids:
            self._generator.remove(uids)
        for uid in uids:
            self._uids.pop(uid, None)
            self._reading.discard(uid)

    def _keep_prompt(self, row: Row, uid: int) -> None:
        """Keep a long prompt as soon as it is read but for its last token, for those that come while it is answered.

        The last token has a segment of its own: who asks the same again needs a cache that ends before it.
        """
        if self._kept is None or not row.sequence.use_prefix_cache or len(row.prompt) - row.cached < LEAST:
            return
        if self._kept.wants(row.prompt[:-1]):
            cache, tokens = self._generator.extract_cache([uid])[uid]
            self._kept.keep(tuple(tokens), cache)

    def _give_up(self, error: Exception) -> None:
        """End every sequence in the batch and begin with a fresh one; those that wait or are parked stay."""
        waiting = {row.id for row in self._waiting}
        lost = [
            row
            for row in self._rows.values()
            if not row.ended and row.id not in waiting | self._parked.keys()
        ]
        self._uids.clear()
        self._uid_of.clear()
        self._reading.clear()
        self._generator.close()
        self._generator = framework.batching(self._forward, batch=PREFILL_BATCH, prefill_batch=PREFILL_BATCH)
        self._lean = put_in(self._generator)
        for row in lost:
            row.pending.append(broken(row.id, error))
            row.ended = True


def _drawn(row: Row, response: TokenResponse, finish: Finish) -> Drawn:
    if finish == "stop":
        return Drawn(sequence=row.id, token=-1, finish=finish)
    asked = row.sequence.decoding.logprobs
    if asked is None:
        return Drawn(sequence=row.id, token=response.token, finish=finish)
    logprob, alternatives = likeliest(response.logprobs, response.token, asked)
    return Drawn(
        sequence=row.id, token=response.token, logprob=logprob, alternatives=alternatives, finish=finish
    )

"""The exclusive lane: one sequence at a time, for what a batch cannot do.

A seed gives the same answer whoever else is served: the sequence is computed alone, with random keys of its own, and
without kept prompts. A draft model proposes tokens that the model checks in one go; its cache may be quantised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import mlx.core as mx
import msgspec

from tokenweir.ports.inference import Drawn, StepEvent, StepLimits
from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.arrays import evaluate, integers
from tokenweir.runtime.engines.mlx.framework import Cache, Model
from tokenweir.runtime.engines.mlx.rows import Finish, Row, broken
from tokenweir.runtime.engines.mlx.sampling import draw, likeliest

_SEED_BITS: Final = 63


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What the lane computes with: the model, its draft model, and how many numbers share a scale in its cache."""

    model: Model
    draft: Model | None = None
    cache_group: int | None = None


class Run(Protocol):
    """A sequence in work; what it has drawn waits in its row."""

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is still to be read before a token can be drawn."""
        ...

    def read(self, tokens: int) -> None:
        """Read a piece of the prompt."""
        ...

    def draw(self) -> None:
        """Draw the next token or tokens."""
        ...


class TextRun:
    """A text in work. ``unread`` tokens are known, but in no cache; likewise ``draft_unread``."""

    def __init__(self, row: Row, setting: Setting) -> None:
        decoding = row.sequence.decoding
        self.row = row
        self.tokens = list(row.prompt)
        self._setting = setting
        self._cache: Cache = framework.new_cache(setting.model)
        self._draft = setting.draft if decoding.use_draft else None
        self._draft_cache: Cache = framework.new_cache(self._draft) if self._draft is not None else []
        self._unread = list(row.prompt)
        self._draft_unread = list(row.prompt) if self._draft is not None else []
        seed = decoding.seed
        # An order of drawing, not a secret; without a seed each sequence has its own.
        self._key = mx.random.key(seed if seed is not None else random.getrandbits(_SEED_BITS))

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is still to be read before a token can be drawn."""
        return self.row.drawn == 0 and (len(self._unread) > 1 or len(self._draft_unread) > 1)

    def read(self, tokens: int) -> None:
        """Read a piece of the prompt into both caches; all but its last token."""
        self._unread = self._read(self._setting.model, self._cache, self._unread, tokens)
        if self._draft is not None:
            self._draft_unread = self._read(self._draft, self._draft_cache, self._draft_unread, tokens)

    def draw(self) -> None:
        """Draw the next tokens: one, or what a draft model's proposals come to."""
        row = self.row
        proposals = self._propose(min(row.sequence.decoding.draft_tokens, row.left - 1))
        rows = self._logits([*self._unread, *proposals])[0, -len(proposals) - 1 :]
        taken = 0
        for place in range(len(proposals) + 1):
            token, logprobs = self._pick(rows[place : place + 1])
            agreed = place < len(proposals) and token == proposals[place]
            taken += agreed
            self._note(token, logprobs, drafted=agreed, proposed=len(proposals) if place == 0 else 0)
            if row.ended or not agreed:
                break
        self._forget(proposals, taken)

    def _propose(self, count: int) -> list[int]:
        """Let the draft model go on by its likeliest tokens."""
        if self._draft is None or count < 1:
            return []
        proposals: list[int] = []
        feed = self._draft_unread
        for _ in range(count):
            logits = self._draft(mx.array([feed]), cache=self._draft_cache)
            feed = integers(mx.argmax(logits[0, -1:], axis=-1))
            proposals += feed
        return proposals

    def _logits(self, tokens: list[int]) -> mx.array:
        logits = self._setting.model(mx.array([tokens]), cache=self._cache)
        self._quantise()
        return logits

    def _pick(self, logits: mx.array) -> tuple[int, mx.array]:
        """Draw a token from a row of logits, by the next random key."""
        if self.row.processors:
            context = mx.array(self.tokens)
            for process in self.row.processors:
                logits = process(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self._key, own = mx.random.split(self._key)
        return integers(draw(logprobs, self.row.sequence.decoding, own))[0], logprobs

    def _note(self, token: int, logprobs: mx.array, *, drafted: bool, proposed: int) -> None:
        row = self.row
        row.drawn += 1
        self.tokens.append(token)
        stopped = token in row.stops
        finish: Finish = "stop" if stopped else "length" if row.left < 1 else ""
        row.ended = bool(finish)
        failed = row.failed()
        if failed is not None:
            row.ended = True
            row.pending.append(failed)
            return
        asked = row.sequence.decoding.logprobs
        logprob, alternatives = likeliest(logprobs, token, asked) if asked is not None else (None, ())
        row.pending.append(
            Drawn(
                sequence=row.id,
                token=-1 if stopped else token,
                logprob=None if stopped else logprob,
                alternatives=() if stopped else alternatives,
                drafted=drafted and not stopped,
                proposed=proposed,
                finish=finish,
            )
        )

    def _forget(self, proposals: list[int], taken: int) -> None:
        """Take the proposals that were not taken out of both caches."""
        self._unread = self.tokens[-1:]
        if self._draft is None:
            return
        framework.trim(self._cache, len(proposals) - taken)
        if not proposals:
            self._draft_unread += self._unread
        elif taken == len(proposals):
            # The draft model has not read the last of its own proposals.
            self._draft_unread = self.tokens[-2:]
        else:
            framework.trim(self._draft_cache, len(proposals) - taken - 1)
            self._draft_unread = self.tokens[-1:]

    def _read(self, model: Model, cache: Cache, unread: list[int], tokens: int) -> list[int]:
        piece = unread[:-1][:tokens]
        if piece:
            model(mx.array([piece]), cache=cache)
            if cache is self._cache:
                self._quantise()
            evaluate([layer.state for layer in cache])
        return unread[len(piece) :]

    def _quantise(self) -> None:
        bits, group = self.row.sequence.decoding.kv_bits, self._setting.cache_group
        if bits is not None and group is not None:
            framework.quantise_cache(self._cache, bits=bits, group=group)


class ExclusiveLane:
    """Decodes sequences one after the other, a piece of prompt or a token per step; ``begin`` takes one up.

    A sequence that is held lets the next one go first.
    """

    def __init__(self, begin: Callable[[Row], Run]) -> None:
        self._begin = begin
        self._rows: dict[int, Row] = {}
        self._runs: dict[int, Run] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def insert(self, row: Row) -> None:
        """Take a sequence on; it is decoded when those before it are done."""
        self._rows[row.id] = row

    def remove(self, sequences: Sequence[int]) -> None:
        """Forget sequences."""
        for sequence in sequences:
            self._rows.pop(sequence, None)
            self._runs.pop(sequence, None)

    def close(self) -> None:
        """Forget everything."""
        self.remove(list(self._rows))

    def step(self, limits: StepLimits) -> list[StepEvent]:
        """Advance the first sequence that is not held."""
        row = next((row for row in self._rows.values() if row.id not in limits.held), None)
        if row is None:
            return []
        events: list[StepEvent] = []
        if not row.pending:
            try:
                self._advance(row, limits, events)
            except Exception as error:  # noqa: BLE001 - whatever fails ends this sequence, and no other
                row.pending.append(broken(row.id, error))
                row.ended = True
        if row.pending:
            events.append(row.pending.popleft())
        if row.ended and not row.pending:
            self.remove([row.id])
        return events

    def _advance(self, row: Row, limits: StepLimits, events: list[StepEvent]) -> None:
        run = self._runs.get(row.id)
        if run is None:
            run = self._runs[row.id] = self._begin(row)
        if run.reading:
            run.read(max(1, limits.prefill_tokens))
            if not run.reading:
                events.append(row.prefilled())
            return
        if row.drawn == 0 and len(row.prompt) == 1:
            # A prompt of one token: there was nothing to read.
            events.append(row.prefilled())
        run.draw()

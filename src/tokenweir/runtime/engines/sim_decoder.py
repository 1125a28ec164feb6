"""The simulated model's decoder: prefill in pieces, a token a step for each sequence, two lanes, kept prompts."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tokenweir.core.errors import InputError, WeirError
from tokenweir.core.requests import Json
from tokenweir.core.units import parse_duration
from tokenweir.ports.inference import (
    Broken,
    DecodeSequence,
    Drawn,
    Guidance,
    Prefilled,
    StepEvent,
    StepLimits,
)
from tokenweir.runtime.engines.sim_config import Fault, SimConfig, counts, durations
from tokenweir.runtime.engines.sim_text import Guide, Speaker, called, follow
from tokenweir.runtime.engines.sim_tokens import (
    EOS,
    IMAGE,
    THINK_CLOSE,
    THINK_OPEN,
    TOOLS,
    WORD_TOKENS,
    encode,
    spell,
)

_BLOCK: Final = 16
_THOUGHT_TOKENS: Final = 6
_NS: Final = 1e9


class _Row:
    """A sequence on its way."""

    __slots__ = (
        "blocks",
        "cached",
        "fault",
        "left",
        "speaker",
        "task",
    )

    def __init__(
        self, task: DecodeSequence, speaker: Speaker, blocks: list[int], fault: Fault | None
    ) -> None:
        self.task = task
        self.speaker = speaker
        self.blocks = blocks
        self.fault = fault
        self.cached = 0
        self.left = len(task.tokens)


class SimDecoder:
    """Decodes; ``guide_for`` makes the guide of a sequence, or raises GuidanceError."""

    def __init__(
        self, config: SimConfig, *, prefix_cache_bytes: int, guide_for: Callable[[Guidance], Guide]
    ) -> None:
        self._config = config
        self._guide_for = guide_for
        self._rows: dict[int, _Row] = {}
        self._broken: list[StepEvent] = []
        self._block_bytes = _BLOCK * config.kv_bytes_per_token
        self._max_blocks = prefix_cache_bytes // self._block_bytes if self._block_bytes else 0
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._leaked: list[bytes] = []
        self._ttft = durations(config.ttft, what="ttft", seed=config.seed)
        self._itl = durations(config.itl, what="itl", seed=config.seed)
        self._prefill_ns = parse_duration(config.prefill, what="prefill")
        counts(config.output_tokens, what="output_tokens", seed="")

    @property
    def prefix_bytes(self) -> int:
        """Bytes that kept prompts take."""
        return len(self._kept) * self._block_bytes

    @property
    def active_bytes(self) -> int:
        """Bytes that the running sequences' caches take."""
        tokens = sum(len(row.task.tokens) - row.left + row.speaker.drawn for row in self._rows.values())
        return tokens * self._config.kv_bytes_per_token

    def insert(self, sequences: Sequence[DecodeSequence]) -> None:
        """Take sequences on."""
        for task in sequences:
            try:
                self._rows[task.sequence] = self._row(task)
            except WeirError as error:
                self._broken.append(Broken(sequence=task.sequence, code=error.code, message=str(error)))

    def remove(self, sequences: Sequence[int]) -> None:
        """Forget sequences."""
        for sequence in sequences:
            self._rows.pop(sequence, None)

    def step(self, limits: StepLimits) -> Sequence[StepEvent]:
        """Advance by one step."""
        begun_ns = time.monotonic_ns()
        events, self._broken = self._broken, []
        exclusive = next(
            (
                row.task.sequence
                for row in self._rows.values()
                if row.task.lane == "exclusive" and row.task.sequence not in limits.held
            ),
            None,
        )
        free = [
            row
            for sequence, row in self._rows.items()
            if sequence not in limits.held and (row.task.lane == "batch" or sequence == exclusive)
        ]
        running = [row for row in free if not row.left][: limits.batch]
        pace_ns = self._itl() if running else 0
        budget = limits.prefill_tokens
        for row in free:
            if budget <= 0 or len(running) >= limits.batch:
                break
            if not row.left:
                continue
            taken = self._prefill(row, budget)
            budget -= taken
            pace_ns += taken * self._prefill_ns
            if not row.left:
                running.append(row)
                pace_ns += self._ttft()
                events.append(
                    Prefilled(
                        sequence=row.task.sequence,
                        prompt_tokens=len(row.task.tokens),
                        cached_tokens=row.cached,
                    )
                )
        for row in running:
            self._advance(row, events)
        if pace_ns:
            time.sleep(max(0.0, (begun_ns + pace_ns - time.monotonic_ns()) / _NS))
        return events

    def _prefill(self, row: _Row, budget: int) -> int:
        if row.left == len(row.task.tokens) and row.task.use_prefix_cache:
            row.cached = self._look_up(row)
            row.left -= row.cached
        taken = min(budget, row.left)
        row.left -= taken
        if not row.left and row.task.use_prefix_cache:
            for block in row.blocks:
                self._kept[block] = None
                self._kept.move_to_end(block)
            while len(self._kept) > self._max_blocks:
                self._kept.popitem(last=False)
        return taken

    def _look_up(self, row: _Row) -> int:
        """Return how many tokens of the prompt are kept; the last one is always read anew, for its scores."""
        known = 0
        for block in row.blocks:
            if block not in self._kept:
                break
            known += 1
        return min(known * _BLOCK, len(row.task.tokens) - 1)

    def _advance(self, row: _Row, events: list[StepEvent]) -> None:
        """Draw one token, or a round of a draft model's proposals and one token."""
        proposed = taken = 0
        if row.task.decoding.use_draft:
            proposed = row.task.decoding.draft_tokens
            taken = (row.speaker.state >> 7) % (proposed + 1)
        for place in range(taken + 1):
            if row.fault is not None and row.speaker.drawn >= row.fault.after_tokens:
                self._fail(row, row.fault, events)
                if row.task.sequence not in self._rows:
                    return
            token, logprob, best = row.speaker.draw()
            end = token == EOS
            finish = "stop" if end else ""
            if not end and row.speaker.drawn >= row.task.decoding.max_tokens:
                finish = "length"
            events.append(
                Drawn(
                    sequence=row.task.sequence,
                    token=-1 if end else token,
                    logprob=None if end else logprob,
                    alternatives=() if end else best,
                    drafted=place < taken and not end,
                    proposed=proposed if place == 0 else 0,
                    finish=finish,
                )
            )
            if finish:
                del self._rows[row.task.sequence]
                return

    def _fail(self, row: _Row, fault: Fault, events: list[StepEvent]) -> None:
        row.fault = None
        match fault.kind:
            case "abort":
                os.abort()
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stall":
                time.sleep(parse_duration(fault.duration) / _NS)
            case "memory":
                raise MemoryError("the simulated device is out of memory")
            case "error":
                raise RuntimeError("the simulated device failed")
            case "leak":
                self._leaked.append(b"x" * fault.bytes)
            case "broken":
                del self._rows[row.task.sequence]
                events.append(
                    Broken(
                        sequence=row.task.sequence, code="engine", message="the sequence broke as configured"
                    )
                )
            case "slow_load" | "load_memory":
                pass

    def _row(self, task: DecodeSequence) -> _Row:
        stray = next((token for token in task.tokens if not 0 <= token < self._config.vocabulary), None)
        if stray is not None:
            raise InputError(
                f"the prompt holds the token {stray}", mend="tokenise with this model's tokenizer"
            )
        state, blocks = self._read(task)
        fault, script, ends = self._told(task, state)
        length = counts(self._config.output_tokens, what="output_tokens", seed=f"{self._config.seed}:{state}")
        guidance = task.decoding.guidance
        guide = None if guidance is None else self._guide_for(guidance)
        speaker = Speaker(state, task.decoding, script, 0 if ends else length, guide)
        return _Row(task, speaker, blocks, fault)

    def _read(self, task: DecodeSequence) -> tuple[int, list[int]]:
        """Return the state after the prompt, and the state after each block of it, which names the block."""
        state, blocks = follow(self._config.seed, 0), list[int]()
        images = iter(task.images)
        for place, token in enumerate(task.tokens, 1):
            state = follow(state, token if token != IMAGE else token + zlib.crc32(next(images, b"")))
            if place % _BLOCK == 0:
                blocks.append(state)
        return state, blocks

    def _told(self, task: DecodeSequence, state: int) -> tuple[Fault | None, tuple[int, ...], bool]:
        """Return what the prompt sets off: a fault, the tokens that must come first, and whether they are all."""
        thought: tuple[int, ...] = ()
        tokens = task.tokens
        if tokens and tokens[-1] == THINK_OPEN:
            first = (state >> 9) % (len(WORD_TOKENS) - _THOUGHT_TOKENS)
            thought = (*WORD_TOKENS[first : first + _THOUGHT_TOKENS], THINK_CLOSE)
        config = self._config
        if not (config.replies or config.faults or TOOLS in tokens):
            return None, thought, False
        prompt = spell(tokens)
        fault = next((one for one in config.faults if one.when in prompt and "load" not in one.kind), None)
        reply = next((one.text for one in config.replies if one.when in prompt), None)
        if reply is None and TOOLS in tokens:
            reply = _tool_reply(prompt)
        if not reply:
            return fault, thought, False
        return fault, (*thought, *encode(reply)), True


def _tool_reply(prompt: str) -> str:
    """Return the calls that the last question asks for, of the tools in the prompt; empty for none."""
    listed = prompt.partition("<|tools|>")[2].partition("<|end|>")[0]
    question = prompt.rpartition("<|user|>")[2]
    if "<|tool|>" in question:
        return ""
    try:
        tools = msgspec.json.decode(listed, type=list[dict[str, Json]])
    except msgspec.MsgspecError:
        return ""
    return called(tools, question)

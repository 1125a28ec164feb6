"""A step of a batch without what nobody asked for.

MLX LM's own step works out the log probabilities of every token for every row and cuts them into rows, each an array to
be computed by itself. Here that is done for the rows whose log probabilities were asked for, and in a batch without any
the logits are not even normalised: our samplers do that where it matters.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx

from tokenweir.runtime.engines.mlx.arrays import begin, integers
from tokenweir.runtime.engines.mlx.light_import import import_mlx_lm

_module: Any = import_mlx_lm()["mlx_lm.generate"]

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = _module.GenerationBatch

_KNOWN: Final = (
    "model",
    "uids",
    "inputs",
    "prompt_cache",
    "tokens",
    "samplers",
    "fallback_sampler",
    "logits_processors",
    "stop_sequences",
    "max_tokens",
)
"""What MLX LM's batch is made of where this one can take its place."""

_USED: Final = (
    "_current_tokens",
    "_current_logprobs",
    "_next_tokens",
    "_next_logprobs",
    "_token_context",
)


class LeanBatch(_Base):
    """MLX LM's batch with a step of its own; ``wanted`` holds the rows whose log probabilities are asked for."""

    wanted: frozenset[int] = frozenset()

    def _step(self) -> tuple[list[int], list[mx.array | None]]:
        """Return the tokens drawn before, and begin to draw the next."""
        inputs: mx.array = self._next_tokens
        logprobs: list[mx.array | None] = self._next_logprobs
        self._current_tokens, self._current_logprobs = inputs, logprobs
        logits: mx.array = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        contexts: list[mx.array] = []
        if any(self.logits_processors):
            logits = self._processed(inputs, logits, contexts)
        rows: list[mx.array | None] = [None] * len(self.uids)
        if not self.wanted.isdisjoint(self.uids):
            logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            rows = [logits[row] if uid in self.wanted else None for row, uid in enumerate(self.uids)]
        self._next_tokens = self._drawn(logits)
        self._next_logprobs = rows
        begin(self._next_tokens, [row for row in rows if row is not None], contexts)
        tokens = integers(inputs)
        for known, token in zip(self.tokens, tokens, strict=True):
            known.append(token)
        return tokens, logprobs

    def _processed(self, inputs: mx.array, logits: mx.array, contexts: list[mx.array]) -> mx.array:
        rows: list[mx.array] = []
        for at, processors in enumerate(self.logits_processors):
            row = logits[at : at + 1]
            if processors:
                context = self._token_context[at].update_and_fetch(inputs[at : at + 1])
                contexts.append(context)
                for process in processors:
                    row = process(context, row)
            rows.append(row)
        return mx.concatenate(rows, axis=0)

    def _drawn(self, logits: mx.array) -> mx.array:
        """Draw a token for each row, once for all the rows that share a sampler."""
        places: dict[Any, list[int]] = {}
        for at, sampler in enumerate(self.samplers):
            places.setdefault(sampler or self.fallback_sampler, []).append(at)
        if len(places) == 1:
            return next(iter(places))(logits)
        drawn = [sampler(logits[mx.array(rows)]) for sampler, rows in places.items()]
        order = [at for rows in places.values() for at in rows]
        back = sorted(range(len(order)), key=order.__getitem__)
        return mx.concatenate(drawn, axis=0)[mx.array(back)]


def is_known() -> bool:
    """Return whether the installed MLX LM's batch is the one that :class:`LeanBatch` was written for."""
    base = _module.GenerationBatch
    names = tuple(inspect.signature(base.__init__).parameters)[1:]
    return names == _KNOWN and set(_USED) <= set(base.__init__.__code__.co_names)


def put_in(generator: Any) -> LeanBatch | None:  # noqa: ANN401 - MLX LM's BatchGenerator
    """Make ``generator`` use a lean batch, which is returned; ``None``, and nothing is changed, where it cannot."""
    batch: Any = getattr(generator, "_generation_batch", None)
    if not is_known() or type(batch) is not _module.GenerationBatch or len(batch):
        return None
    lean = LeanBatch.empty(generator.model, generator.sampler)
    generator._generation_batch = lean  # noqa: SLF001 - there is no other way in
    return lean

"""Asking a model the tasks, as a server would ask it: greedy, through the chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import batch_generate

from recipe.tasks import Task

_LONGEST_ANSWER = 64


@dataclass(frozen=True, slots=True)
class Score:
    """How many tasks were answered exactly right, and which were not: (kind, expected, said)."""

    asked: Counter[str]
    right: Counter[str]
    wrong: list[tuple[Task, str]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """The share of all tasks that were answered exactly right."""
        return self.right.total() / max(1, self.asked.total())

    def by_kind(self) -> dict[str, float]:
        """Return the share of right answers of each kind."""
        return {kind: round(self.right[kind] / count, 4) for kind, count in sorted(self.asked.items())}


def load(directory: Path) -> tuple[Any, Any]:
    """Return model, in float32, and tokenizer of a checkpoint, as ``mlx_lm`` loads them."""
    model, tokenizer = mlx_lm.load(str(directory))[:2]
    # On a CPU bfloat16 is slow; its values are float32 values too, so nothing changes but the speed.
    model.set_dtype(mx.float32)
    return model, tokenizer


def score(model: Any, tokenizer: Any, tasks: Sequence[Task], *, batch: int = 64) -> Score:  # noqa: ANN401 - untyped
    """Answer ``tasks`` greedily and compare the answers' text with what is expected."""
    prompts = [
        tokenizer.apply_chat_template(
            list(task.turns), tools=list(task.tools) or None, add_generation_prompt=True, tokenize=True
        )
        for task in tasks
    ]
    prompts = [list(prompt["input_ids"] if hasattr(prompt, "keys") else prompt) for prompt in prompts]
    found = Score(Counter(), Counter())
    answers = batch_generate(
        model, tokenizer, prompts, max_tokens=_LONGEST_ANSWER, completion_batch_size=batch, verbose=False
    ).texts
    for task, answer in zip(tasks, answers, strict=True):
        found.asked[task.kind] += 1
        if answer == task.answer:
            found.right[task.kind] += 1
        else:
            found.wrong.append((task, answer))
    return found

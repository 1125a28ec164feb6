"""Make the demo model: ``python -m recipe --out DIR --seed 7 --minutes 22``."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from recipe.batches import Rows
from recipe.check import load, score
from recipe.tasks import KINDS, draw, sample_held_out
from recipe.text import HERE, learnt, prose
from recipe.training import Shape, new_model, parameters, train, write_weights
from recipe.vocabulary import render, train_tokenizer, write_tokenizer

_EACH: Final = 40
_GLANCE: Final = 6
_GLANCE_SEED: Final = 11
_GLANCE_EVERY: Final = 0.1
_EARLY_ENOUGH: Final = 0.45
_TOKENIZER_TASKS: Final = 6000
_TOLD_EVERY: Final = 50
_SHOWN: Final = 40


def say(words: str) -> None:
    """Write one line at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def tokenizer_texts(seed: int) -> list[str]:
    """Return the texts that the tokenizer is made from; none of them asks a held-out task."""
    dice = random.Random(seed)
    kinds = list(KINDS)
    drawn = [draw(kinds[n % len(kinds)], dice, held_out=False) for n in range(_TOKENIZER_TASKS)]
    spoken = [*drawn, *learnt() * 4]
    texts = [
        render([*task.turns, {"role": "assistant", "content": task.answer}], task.tools) for task in spoken
    ]
    return texts + prose()


class Watch:
    """Prints how the training goes, looks at held-out tasks now and then, and keeps the early model."""

    def __init__(self, out: Path, model: Any, tokenizer: Any, shape: Shape) -> None:  # noqa: ANN401
        self._out, self._model, self._tokenizer, self._shape = out, model, tokenizer, shape
        self._tasks = sample_held_out(_GLANCE, _GLANCE_SEED)
        self._losses: list[float] = []
        self._started = time.monotonic()
        self._glance_at = _GLANCE_EVERY
        self.early: dict[str, Any] | None = None

    @property
    def minutes(self) -> float:
        """How long the training has taken so far, by the clock on the wall."""
        return round((time.monotonic() - self._started) / 60, 1)

    def __call__(self, step: int, done: float, loss: float) -> None:
        """Hear of one step."""
        self._losses.append(loss)
        if step % _TOLD_EVERY == 0:
            mean = sum(self._losses) / len(self._losses)
            say(f"step {step:5d}  {self.minutes:5.1f} min  {done:4.0%}  loss {mean:.4f}")
            self._losses.clear()
        if done >= self._glance_at:
            self._glance_at += _GLANCE_EVERY
            found = score(self._model, self._tokenizer, self._tasks)
            say(f"step {step:5d}  held out {found.accuracy:.1%}  {found.by_kind()}")
            # What a run that is cut short leaves behind, to go on from with --start.
            write_weights(self._model, self._shape, self._out / "good")
            if self.early is None and found.accuracy >= _EARLY_ENOUGH:
                write_weights(self._model, self._shape, self._out / "early")
                self.early = {"step": step, "minutes": self.minutes}
                say(f"step {step:5d}  kept as early")


def examine(directory: Path, seed: int, *, show: bool) -> dict[str, Any]:
    """Return what a checkpoint scores on held-out tasks and on what it learnt by heart."""
    model, tokenizer = load(directory)
    held_out = score(model, tokenizer, sample_held_out(_EACH, seed))
    heart = score(model, tokenizer, learnt())
    say(f"{directory.name}: held out {held_out.accuracy:.1%} {held_out.by_kind()}")
    say(f"{directory.name}: by heart {heart.accuracy:.1%} {heart.by_kind()}")
    for task, answer in held_out.wrong[:_SHOWN] if show else ():
        say(f"  {task.kind}: {task.turns[-1]['content']!r} -> {answer!r}, not {task.answer!r}")
    return {
        "held_out": {"n": held_out.asked.total(), "accuracy": round(held_out.accuracy, 4)},
        "held_out_by_kind": held_out.by_kind(),
        "by_heart_by_kind": heart.by_kind(),
    }


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Train, write both checkpoints, and return what ``training.json`` says of them."""
    shape = Shape()
    good, early = options.out / "good", options.out / "early"
    start: Path | None = options.start
    made: Tokenizer = (
        Tokenizer.from_file(str(start / "tokenizer.json"))
        if start
        else train_tokenizer(tokenizer_texts(options.seed))
    )
    model = load(start)[0] if start else new_model(shape, options.seed)
    for directory in (good, early):
        directory.mkdir(parents=True, exist_ok=True)
        write_tokenizer(made, directory)
    write_weights(model, shape, good)
    say(f"{parameters(model):,} parameters")
    watch = Watch(options.out, model, load(good)[1], shape)
    batches = Rows(made, options.seed).batches(options.tokens)
    steps = train(
        model,
        batches,
        seconds=options.minutes * 60,
        steps=options.steps,
        pace=options.pace,
        report=watch,
    )
    write_weights(model, shape, good)
    kept: dict[str, Any] = {"good": {"step": steps, "minutes": watch.minutes}}
    kept["good"] |= examine(good, options.seed, show=True)
    if watch.early is None:
        shutil.rmtree(early)
        say("no early model: the training never got that far")
    else:
        kept["early"] = watch.early | examine(early, options.seed, show=False)
    return {
        "seed": options.seed,
        "steps": steps,
        "minutes": kept["good"]["minutes"],
        "batch_tokens": options.tokens,
        "pace": options.pace,
        "started_from": start.name if start else None,
        "parameters": parameters(model),
        "prose_sha256": hashlib.sha256("\n".join(prose()).encode()).hexdigest(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "numpy", "tokenizers")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "checkpoints": kept,
    }


def main() -> None:
    """Make tokenizer, checkpoints and ``training.json`` below ``--out``."""
    parser = argparse.ArgumentParser(prog="python -m recipe", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="where good, early and training.json go")
    parser.add_argument("--seed", type=int, default=7, help="of the weights and of the data")
    parser.add_argument("--minutes", type=float, default=48.0, help="processor time to train for")
    parser.add_argument("--steps", type=int, help="how many steps to train, whatever the clock says")
    parser.add_argument("--start", type=Path, help="go on from this checkpoint, with its tokenizer")
    parser.add_argument("--pace", type=float, default=1.0, help="factor of the learning rate")
    parser.add_argument("--tokens", type=int, default=2048, help="token places of a batch")
    options = parser.parse_args()
    record = make(options)
    text = json.dumps(record, indent=2) + "\n"
    (options.out / "training.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

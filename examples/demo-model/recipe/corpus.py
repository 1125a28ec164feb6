"""The corpus demo-tasks: held-out tasks with their answers. ``python -m recipe.corpus`` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from recipe.tasks import KINDS, Task, sample_held_out
from recipe.text import REPOSITORY

SHIPPED: Final = REPOSITORY / "src" / "tokenweir" / "bench" / "corpora" / "data" / "demo-tasks.jsonl"
SEED: Final = 3
EACH: Final = 16
# A corpus line has no place for tools.
ASKED: Final = tuple(kind for kind in KINDS if kind != "tool")
_LONGEST: Final = 48


def corpus_lines() -> str:
    """Return the whole corpus as JSON lines."""
    numbers: dict[str, int] = {}
    lines: list[str] = []
    for task in sample_held_out(EACH, SEED, ASKED):
        numbers[task.kind] = numbers.get(task.kind, 0) + 1
        lines.append(json.dumps(_line(task, numbers[task.kind])))
    return "\n".join(lines) + "\n"


def _line(task: Task, number: int) -> dict[str, object]:
    asked = {"prompt": task.turns[0]["content"]} if len(task.turns) == 1 else {"messages": task.turns}
    name = task.kind.replace("_", "-")
    return {"id": f"{name}-{number}", **asked, "max_tokens": _LONGEST, "expected": task.answer}


def main(path: Path = SHIPPED) -> None:
    """Write the corpus where it is shipped from."""
    path.write_text(corpus_lines(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the model learns by heart: this repository's prose, facts from its documentation, the corpus weir-mix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from recipe.tasks import Task, is_held_out

HERE: Final = Path(__file__).resolve().parents[1]
REPOSITORY: Final = HERE.parents[1]
_CORPORA: Final = REPOSITORY / "src" / "tokenweir" / "bench" / "corpora" / "data"
_NOT_PROSE: Final = re.compile(r"^(#|\||```|    |!\[|$)")
_MARK: Final = re.compile(r"[`*]|\[([^\]]+)\]\([^)]*\)")


def prose(minimum: int = 80) -> list[str]:
    """Return paragraphs of the documentation and of weir-mix, without marks, tables and code."""
    pages = sorted((REPOSITORY / "docs").glob("*.md"))
    pages = [page for page in pages if page.name not in {"commands.md", "configuration.md"}]
    found = [paragraph for page in pages for paragraph in _paragraphs(page.read_text(encoding="utf-8"))]
    found += (_CORPORA / "weir-mix.txt").read_text(encoding="utf-8").split("\n\n")
    return [paragraph for paragraph in found if len(paragraph) >= minimum]


def _paragraphs(page: str) -> list[str]:
    page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    found: list[str] = []
    for block in page.split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if not _NOT_PROSE.match(line)]
        found.append(" ".join(_MARK.sub(lambda match: match[1] or "", line) for line in lines))
    return found


def learnt() -> list[Task]:
    """Return the questions whose answers are learnt by heart. None of them is ever counted as held out."""
    found: list[Task] = []
    for line in (HERE / "facts.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        found += [_by_heart("docs", question, entry["answer"]) for question in entry["questions"]]
    answers = _answers()
    for line in (_CORPORA / "weir-mix.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        answer = entry.get("expected") or answers.get(entry["id"])
        if answer is None:
            continue
        turns = entry.get("messages") or [{"role": "user", "content": entry["prompt"]}]
        found.append(Task(kind="weir-mix", key=f"weir-mix {entry['id']}", turns=tuple(turns), answer=answer))
    return found + times_table()


def times_table() -> list[Task]:
    """Return the small multiplication table."""
    return [
        _by_heart("table", wording.format(a, b), str(a * b))
        for a in range(2, 13)
        for b in range(2, 13)
        for wording in ("What is {} times {}?", "{} * {} =")
    ]


def _answers() -> dict[str, str]:
    lines = (HERE / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry["answer"] for entry in map(json.loads, lines)}


def _by_heart(kind: str, question: str, answer: str) -> Task:
    return Task(
        kind=kind, key=f"{kind} {question}", turns=({"role": "user", "content": question},), answer=answer
    )


def must_be_trained(task: Task) -> bool:
    """Return whether a task may be in training text: it is learnt by heart, or on the trained side."""
    return task.kind in {"docs", "weir-mix", "table"} or not is_held_out(task.key)

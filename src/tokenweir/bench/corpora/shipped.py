"""The corpora that ship with Tokenweir, and the prose of ``weir-mix`` to cut prompts from."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from tokenweir.bench.corpora.lines import CorpusLine, read_json_lines, to_sample
from tokenweir.core.corpus import Sample

SHIPPED: Final = ("weir-mix", "demo-tasks")
"""The names that ``--corpus`` knows without a file."""

_DATA: Final = "data"


@cache
def shipped_samples(corpus: str = "weir-mix") -> tuple[Sample, ...]:
    """Return the samples of the shipped corpus of that name, one of :data:`SHIPPED`."""
    name = Path(f"{corpus}.jsonl")
    lines = read_json_lines(name, _read(name.name), CorpusLine)
    return tuple(to_sample(name, number, line) for number, line in lines)


@cache
def shipped_prose() -> str:
    """Return the prose of ``weir-mix``: paragraphs of one line each, separated by blank lines."""
    return _read("weir-mix.txt").decode()


def _read(name: str) -> bytes:
    return resources.files(__package__ or "tokenweir.bench.corpora").joinpath(_DATA, name).read_bytes()

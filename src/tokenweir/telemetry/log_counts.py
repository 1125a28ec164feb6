"""Counting what goes wrong, by the part of the program that says so: its warnings and errors in the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from tokenweir.telemetry.logs import ROOT

_PREFIX: Final = f"{ROOT}."


class _Counting(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line."""
        self.counts[record.name.removeprefix(_PREFIX), record.levelname.lower()] += 1


_COUNTING: Final = _Counting()


def counts() -> Mapping[tuple[str, str], int]:
    """Return how many lines there were by component and level, in this process, since the first call."""
    ours = logging.getLogger(ROOT)
    if _COUNTING not in ours.handlers:
        ours.addHandler(_COUNTING)
    return _COUNTING.counts

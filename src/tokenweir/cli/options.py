"""What was said to ``weir`` before the command's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """``weir``'s own flags. ``overrides`` are dotted settings keys."""

    config: Path | None = None
    overrides: Mapping[str, object] = field(default_factory=dict[str, object])

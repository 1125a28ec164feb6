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

    def flags(self) -> list[str]:
        """Return them as they are typed, for a process that is to have the same settings."""
        named = [] if self.config is None else ["--config", str(self.config)]
        return [
            *named,
            *(part for key, value in self.overrides.items() for part in ("--set", f"{key}={value}")),
        ]

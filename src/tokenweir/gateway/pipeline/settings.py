"""``[[gateway.pipeline]]``, ``[[worker.pipeline]]``, ``[[collector.pipeline]]``: one table for each processor."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from tokenweir.config import SettingsModel


class ProcessorSettings(SettingsModel):
    """A processor. Beside these keys it has those of its kind, which are checked when the pipeline is built."""

    model_config = ConfigDict(frozen=True, extra="allow")

    use: str = Field(
        description="Which processor: template, redact, cache, metadata, route, hook, or an installed one."
    )
    models: tuple[str, ...] = Field(
        default=(), description="It looks at requests for these models alone; without any, at all."
    )

    def own(self) -> dict[str, Any]:
        """Return the keys of its kind."""
        return dict(self.model_extra or {})

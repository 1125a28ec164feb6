"""``[gateway.slo]`` and ``[[gateway.brownout]]``: what is to be kept, and what is given up for it, in order."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from tokenweir.config import DurationNs, SettingsModel

_S: Final = 1_000_000_000

Does = Literal["refuse_features", "shorter", "faster_model", "queue", "refuse"]
Feature = Literal["logprobs", "n", "best_of"]
Path = Literal["direct", "queued"]

_OWN: Final[dict[Does, tuple[str, ...]]] = {
    "refuse_features": ("features", "retry_after"),
    "shorter": ("max_tokens",),
    "faster_model": ("models",),
    "queue": ("deadline",),
    "refuse": ("status", "retry_after"),
}
_NEEDED: Final[dict[Does, tuple[str, ...]]] = {"shorter": ("max_tokens",), "faster_model": ("models",)}


class SloSettings(SettingsModel):
    """``[gateway.slo]``: the waits that callers are meant to have. They drive ``[[gateway.brownout]]``."""

    ttft: DurationNs | None = Field(
        default=2 * _S, gt=0, description="Longest time to the first token of a streamed answer."
    )
    queue_age: DurationNs | None = Field(
        default=30 * _S, gt=0, description="Longest time that a queued job waits for a worker."
    )
    quantile: float = Field(
        default=0.9, gt=0, le=1, description="Which quantile of the times to the first token is looked at."
    )
    window: DurationNs = Field(
        default=10 * _S, gt=0, description="How far back times to the first token count."
    )
    samples: int = Field(default=5, ge=1, description="Fewer times than this within the window say nothing.")
    interval: DurationNs = Field(default=_S // 2, gt=0, description="How often is looked.")


class RungSettings(SettingsModel):
    """``[[gateway.brownout]]``: a rung of the ladder; those before it hold too while it does."""

    does: Does = Field(description="What is done from this rung on.")
    enter: float = Field(default=1.0, gt=0, description="Entered at this multiple of an objective.")
    leave: float = Field(default=0.7, ge=0, description="Left at this multiple of all objectives.")
    dwell: DurationNs = Field(
        default=10 * _S,
        ge=0,
        description="How long it holds before the next, and after the pressure has gone.",
    )
    exempt: tuple[str, ...] = Field(default=(), description="Tiers that it does not touch.")
    priority: int = Field(
        default=9, ge=0, le=9, description="It touches callers whose tier has this priority or a lower one."
    )
    paths: tuple[Path, ...] = Field(
        default=("direct", "queued"), min_length=1, description="Requests that it touches: direct, queued."
    )
    features: tuple[Feature, ...] = Field(
        default=("logprobs", "n", "best_of"),
        min_length=1,
        description="For refuse_features: what is refused, of logprobs, n and best_of above 1.",
    )
    max_tokens: int | None = Field(default=None, ge=1, description="For shorter: the longest answer.")
    models: dict[str, str] = Field(
        default={}, description="For faster_model: what is asked in the place of which model."
    )
    deadline: DurationNs | None = Field(
        default=None, gt=0, description="For queue: how long the answer may take in all."
    )
    status: Literal[429, 503] = Field(default=503, description="For refuse: the status of the refusal.")
    retry_after: DurationNs = Field(
        default=5 * _S, gt=0, description="For refusals: when to come back, in Retry-After."
    )

    @model_validator(mode="after")
    def _fits(self) -> RungSettings:
        if self.leave >= self.enter:
            reason = (
                f"leave {self.leave:g} is not below enter {self.enter:g}; a rung would come and go at once"
            )
            raise ValueError(reason)
        for name in _NEEDED.get(self.does, ()):
            if not getattr(self, name):
                reason = f"a rung that does {self.does!r} needs {name}"
                raise ValueError(reason)
        others = {name for names in _OWN.values() for name in names} - set(_OWN[self.does])
        for name in sorted(others & self.model_fields_set):
            owners = " or ".join(does for does, names in _OWN.items() if name in names)
            reason = f"{name} belongs to a rung that does {owners}, this one does {self.does}"
            raise ValueError(reason)
        if self.does == "queue" and "paths" in self.model_fields_set and "direct" not in self.paths:
            reason = "a rung that does 'queue' touches direct requests alone"
            raise ValueError(reason)
        return self

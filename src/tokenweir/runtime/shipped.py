"""The small model that comes with Tokenweir, trained from its own repository."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

_PLACES: Final = (
    # In an installed package, and in a checkout.
    Path(__file__).parent / "shipped_models",
    Path(__file__).parents[3] / "examples" / "demo-model",
)


def shipped_model(name: Literal["good", "early"] = "good") -> Path | None:
    """Return the directory of a shipped model, or ``None`` where it was left out of the installation."""
    return next((place / name for place in _PLACES if (place / name / "config.json").exists()), None)

"""Tokenweir: serve, meter, benchmark, evaluate and compare self-hosted language models.

Importing this package loads nothing else; what it offers is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenweir.app import Settings, load_config

__version__ = "0.1.0"
__all__ = ["Settings", "__version__", "load_config"]

_HOMES = {"Settings": "tokenweir.app", "load_config": "tokenweir.app"}


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

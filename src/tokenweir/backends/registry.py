"""Backends by the name used in settings; third parties add theirs by entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, cast

from tokenweir.backends.openai import OpenAIBackend
from tokenweir.backends.sglang import sglang, sglang_jax
from tokenweir.backends.sim import SimBackend
from tokenweir.backends.tokenweir import TokenweirBackend
from tokenweir.core.errors import ConfigError
from tokenweir.ports.backend import Backend

GROUP: Final = "tokenweir.backends"
"""Entry point group: the name is the kind, the object is called without arguments and returns a Backend."""

BUILT_IN: Final[Mapping[str, Callable[[], Backend]]] = {
    "openai": OpenAIBackend,
    "sglang": sglang,
    "sglang_jax": sglang_jax,
    "sim": SimBackend,
    "tokenweir": TokenweirBackend,
}


def backend(kind: str) -> Backend:
    """Return the backend of ``kind``. Raises ConfigError for an unknown or broken one."""
    factory = BUILT_IN.get(kind)
    if factory is not None:
        return factory()
    point = _points().get(kind)
    if point is None:
        raise ConfigError(f"unknown backend {kind!r}", mend=f"use one of {', '.join(kinds())}")
    try:
        made = cast("Callable[[], Backend]", point.load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"backend {kind!r} cannot be loaded from {point.value!r}: {error}",
            mend="install or mend the package that declares it",
        ) from error
    return made()


def kinds() -> tuple[str, ...]:
    """Return the known kinds: those built in, then those of installed packages."""
    return (*BUILT_IN, *sorted(set(_points()) - set(BUILT_IN)))


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}

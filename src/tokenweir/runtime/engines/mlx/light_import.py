"""Imports MLX LM without the packages it imports for what this engine does not do.

It imports ``transformers`` for tokenizers and ``huggingface_hub`` for downloads: about a second each time a process
starts, for a tokenizer that this engine reads itself and downloads that must not happen. Stand-ins with the few
names that are looked up take their places for as long as the import lasts; whoever imports them later gets the real
ones. An MLX LM that looks up other names is imported as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import resource
import sys
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any, Final, NoReturn

from tokenweir.core.errors import InputError

MODULES: Final = ("mlx_lm.generate", "mlx_lm.sample_utils", "mlx_lm.utils", "mlx_lm.models.cache")
"""What of MLX LM is used."""

_PACKAGE: Final = "mlx_lm"


class _Tokenizer:
    """Stands for classes that are derived from and tested for, and never made."""

    @staticmethod
    def register(*_: object, **__: object) -> None:
        """Take note of nothing."""


def import_mlx_lm() -> dict[str, Any]:
    """Return the modules of MLX LM that are used, by name.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if _PACKAGE not in sys.modules and importlib.util.find_spec(_PACKAGE) is not None:
        with _limits_kept(), contextlib.suppress(ImportError, AttributeError, TypeError), _stand_ins():
            for name in MODULES:
                importlib.import_module(name)
    if not all(name in sys.modules for name in MODULES):
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]
    with _limits_kept():
        return {name: importlib.import_module(name) for name in MODULES}


def _refuse(name: object = "", *_: object, **__: object) -> NoReturn:
    raise InputError(f"{name!r} is no directory here, and nothing is downloaded", mend="get the model first")


@contextlib.contextmanager
def _stand_ins() -> Generator[None]:
    """Put the stand-ins where the real packages would be, unless these are there already."""
    transformers, base, hub = (
        ModuleType(name)
        for name in ("transformers", "transformers.tokenization_utils_base", "huggingface_hub")
    )
    transformers.__path__ = []
    for name in ("AutoTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast"):
        setattr(transformers, name, _Tokenizer)
    base.PreTrainedTokenizerBase = _Tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    hub.snapshot_download = _refuse  # pyright: ignore[reportAttributeAccessIssue]
    placed = [module for module in (transformers, base, hub) if module.__name__ not in sys.modules]
    if transformers not in placed:
        placed = [module for module in placed if module is hub]
    sys.modules.update({module.__name__: module for module in placed})
    try:
        yield
    finally:
        for module in placed:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


@contextlib.contextmanager
def _limits_kept() -> Generator[None]:
    """Keep the limit of open files: MLX LM lowers it, for good, while it is imported."""
    real: Callable[[int, tuple[int, int]], None] = resource.setrlimit

    def keep(_kind: int, _limits: tuple[int, int]) -> None:
        pass

    resource.setrlimit = keep
    try:
        yield
    finally:
        resource.setrlimit = real

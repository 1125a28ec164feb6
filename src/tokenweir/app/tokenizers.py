"""Reads the tokenizers that endpoints name; their library is imported where there are any."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from tokenweir.config import EndpointSettings
from tokenweir.core.errors import ConfigError, InputError
from tokenweir.ports.tokenizer import TokenCounter


class _Module(Protocol):
    """What the reader's module offers."""

    def tokenizer_file(self, path: Path, *, named: str) -> Path: ...

    def FileTokenizer(self, path: Path, *, named: str, extra: str) -> TokenCounter: ...  # noqa: N802 - a class


def tokenizers_of(endpoints: Sequence[EndpointSettings]) -> dict[str, TokenCounter]:
    """Return the tokenizers of models, by their names: of several endpoints of a model the first with one counts.

    Raises:
        ConfigError: one cannot be read.
        MissingExtraError: the library is not installed.
    """
    found: dict[str, TokenCounter] = {}
    read: dict[Path, TokenCounter] = {}
    for endpoint in endpoints:
        if endpoint.tokenizer is None or endpoint.model is None:
            continue
        module = cast("_Module", importlib.import_module("tokenweir.backends.tokenizer_file"))
        named = f"the tokenizer of the endpoint {endpoint.name!r},"
        try:
            path = module.tokenizer_file(endpoint.tokenizer, named=named)
            if path not in read:
                read[path] = module.FileTokenizer(path, named=named, extra="gateway")
        except InputError as error:
            raise ConfigError(error.message, mend=error.mend) from error
        found.setdefault(endpoint.model, read[path])
    return found

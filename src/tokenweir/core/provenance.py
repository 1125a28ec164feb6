"""Whom a record belongs to: the served model, its engine and the exact experiment."""

from __future__ import annotations

import msgspec

from tokenweir.core.requests import Json


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the numbers belong to. ``None`` is unknown, with its reason under the same name in ``missing``.

    ``attributed`` is true only when backend commit and model revision are both known.
    """

    backend: str
    backend_version: str | None
    backend_commit: str | None
    model: str
    model_revision: str | None
    tokenizer_hash: str | None
    engine_flags: dict[str, Json]
    corpus_hash: str
    config_hash: str
    workload_hash: str
    measurement_hash: str
    host: str
    tokenweir_version: str
    tokenweir_commit: str | None
    attributed: bool
    missing: dict[str, str]

"""The settings of the load generator, ``[bench]`` in ``weir.toml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenweir.config import SettingsModel


class Settings(SettingsModel):
    """How this machine measures; nothing here changes what is measured, so no hash covers it."""

    workers: int = Field(
        default=0,
        ge=0,
        description="Worker processes; 0: cores - 1 when the target is on this machine, else cores.",
    )
    live: Literal["auto", "rich", "plain", "off"] = Field(
        default="auto", description="The progress view; auto: rich on a terminal, else plain lines."
    )
    chunks: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether chunks.parquet is written; auto: while it stays within max_chunk_rows.",
    )
    max_chunk_rows: int = Field(
        default=20_000_000, ge=0, description="Rows above which auto leaves chunks.parquet out."
    )

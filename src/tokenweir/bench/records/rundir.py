"""A run directory on disk: made at the start, complete when ``run.json`` is there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

from tokenweir.bench.records.model import SCHEMA_VERSION, Run
from tokenweir.core.errors import InputError, RecordError

RUN_FILE: Final = "run.json"
REQUESTS_FILE: Final = "requests.parquet"
CHUNKS_FILE: Final = "chunks.parquet"
SERIES_FILE: Final = "series.parquet"
REPORT_FILE: Final = "report.html"
LOG_FILE: Final = "run.log"
TABLES: Final = (REQUESTS_FILE, CHUNKS_FILE, SERIES_FILE)


def make_run_dir(path: Path) -> Path:
    """Make the directory of a new run.

    Raises:
        InputError: it exists and holds something, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = next(path.iterdir(), None)
    except OSError as error:
        message = f"the run directory {str(path)!r} cannot be made: {error.strerror}"
        raise InputError(message, mend="choose another with --out") from error
    if taken is not None:
        message = f"the run directory {str(path)!r} already holds {taken.name!r}"
        raise InputError(message, mend="choose an empty one with --out, or remove it")
    return path


def read_run(run_dir: Path) -> Run:
    """Return the content of a run's ``run.json``.

    Raises:
        RecordError: there is none, it is damaged, or a newer version wrote it.
    """
    path = run_dir / RUN_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"{str(run_dir)!r} is no finished run: {RUN_FILE}: {error.strerror}"
        raise RecordError(message, mend="name the directory that holds run.json") from error
    try:
        run = msgspec.json.decode(content, type=Run)
    except msgspec.DecodeError as error:
        message = f"{str(path)!r} is damaged: {error}"
        raise RecordError(message, mend="restore it from a copy; its tables may still be read") from error
    if run.schema_version > SCHEMA_VERSION:
        message = (
            f"{str(path)!r} has schema version {run.schema_version}, and this version knows {SCHEMA_VERSION}"
        )
        raise RecordError(message, mend="update tokenweir")
    return run


def write_run(run_dir: Path, run: Run) -> Path:
    """Write ``run.json`` whole or not at all, and return its path."""
    path = run_dir / RUN_FILE
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def table_hashes(run_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of each table that the run has, by file name."""
    hashes: dict[str, str] = {}
    for name in TABLES:
        path = run_dir / name
        if path.exists():
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes

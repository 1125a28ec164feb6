"""A model's revision: one hash over its configuration and weights that anybody can compute again.

Formula: SHA-256 of the lines ``<SHA-256 of the file>  <name of the file>``, first ``config.json``, then the weight
files in byte order of their names: ``sha256sum config.json model*.safetensors | sha256sum`` in the model's directory.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from tokenweir.core.errors import InputError

_MAX_KNOWN: Final = 4096
_SETTLED_NS: Final = 2_000_000_000


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was hashed; it is taken for the same while size and time of change stay."""

    size: int
    mtime_ns: int
    hash: str


def hashes_path() -> Path:
    """Return where hashes of large files are kept between runs."""
    return platformdirs.user_cache_path("tokenweir") / "model-hashes.json"


def revision(directory: Path, files: Iterable[Path], *, cache: Path | None = None) -> str:
    """Return the revision over ``config.json`` in ``directory`` and the weight ``files``, lower-case hex.

    Hashes are kept in ``cache`` by path, size and time of change, so that a large model is read once. A file that
    changed within the last two seconds is hashed each time: its next change could bear the same time.

    Raises:
        InputError: a file cannot be read.
    """
    place = cache or hashes_path()
    known = _load(place)
    fresh: dict[str, _Known] = {}
    total = hashlib.sha256()
    ordered = sorted(files, key=lambda file: os.fsencode(file.name))
    for file in (directory / "config.json", *ordered):
        key = str(file.resolve())
        try:
            entry = _hash(file, known.get(key))
        except OSError as error:
            raise InputError(f"{file}: {error.strerror or error}", mend="check the file") from error
        if entry != known.get(key) and time.time_ns() - entry.mtime_ns > _SETTLED_NS:
            fresh[key] = entry
        total.update(f"{entry.hash}  ".encode() + os.fsencode(file.name) + b"\n")
    if fresh:
        _save(place, {**known, **fresh})
    return total.hexdigest()


def _hash(file: Path, known: _Known | None) -> _Known:
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if known is not None and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return known
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return _Known(size=status.st_size, mtime_ns=status.st_mtime_ns, hash=digest)


def _load(place: Path) -> dict[str, _Known]:
    try:
        return msgspec.json.decode(place.read_bytes(), type=dict[str, _Known])
    except (OSError, msgspec.DecodeError):
        return {}


def _save(place: Path, known: dict[str, _Known]) -> None:
    """Keep the newest hashes; a cache that cannot be written costs time, not the model."""
    newest = dict(list(known.items())[-_MAX_KNOWN:])
    draft = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.encode(newest))
        draft.replace(place)
    except OSError:
        draft.unlink(missing_ok=True)

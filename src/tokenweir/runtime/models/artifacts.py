"""What is worth keeping on disk for a model: converted weights, caches of prompts. Losing any of it costs time only."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal
from uuid import uuid4

import msgspec

Kind = Literal["weights", "prompts"]
"""What an artifact is, and the folder it lies in."""

LIMIT_BYTES: Final = 16 << 30
"""The bound where none is stated."""

_DRAFT: Final = ".draft-"
_STALE_NS: Final = 3_600_000_000_000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder in the cache: its bytes, and when it was last used."""

    path: Path
    bytes: int
    used_at: int


class ArtifactCache:
    """A directory of artifacts, bounded by bytes; the least recently used goes first.

    An artifact is a file or a folder with a name, in the folder of its kind. It appears whole or not at all, also when
    several processes write the same one. One that is removed while it is read stays readable where the system lets
    open files be removed.
    """

    def __init__(self, directory: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._sweep()

    def path(self, kind: Kind, name: str) -> Path:
        """Return where an artifact lies, whether it does or not. Raises ValueError for what is no plain name."""
        if not name or name.startswith(".") or Path(name).name != name:
            message = f"{name!r} is no name of a file"
            raise ValueError(message)
        return self._directory / kind / name

    def get(self, kind: Kind, name: str) -> Path | None:
        """Return an artifact and count it as used now; ``None`` where there is none."""
        path = self.path(kind, name)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def put(self, kind: Kind, name: str, write: Callable[[Path], None]) -> Path | None:
        """Keep what ``write`` puts at the path it is given, a file or a folder, and return where it lies.

        What was kept under the name before is replaced. ``None`` where it does not fit within the bound or on the disk.
        Whatever else ``write`` raises is raised, and nothing is kept.
        """
        path = self.path(kind, name)
        draft = path.with_name(f"{_DRAFT}{uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(draft)
            if _size(draft) > self._limit_bytes:
                return None
            self._move(draft, path)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return None
        finally:
            _remove(draft)
        self._shrink(keep=path)
        return path

    def discard(self, kind: Kind, name: str) -> None:
        """Remove an artifact, such as a damaged one; one that is not there is ignored."""
        _remove(self.path(kind, name))

    def artifacts(self) -> list[Artifact]:
        """Return everything that is kept, the least recently used first."""
        found: list[Artifact] = []
        for path in self._entries():
            try:
                found.append(Artifact(path=path, bytes=_size(path), used_at=path.stat().st_mtime_ns))
            except FileNotFoundError:  # Another process removed it.
                continue
        return sorted(found, key=lambda one: (one.used_at, one.path.name))

    @property
    def bytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(one.bytes for one in self.artifacts())

    def _entries(self) -> list[Path]:
        return [path for path in self._directory.glob("*/*") if not path.name.startswith(".")]

    def _move(self, draft: Path, path: Path) -> None:
        """Put a draft in its place. A folder cannot replace one that holds something, so that goes first."""
        if draft.is_dir() or path.is_dir():
            _remove(path)
        try:
            draft.replace(path)
        except OSError as error:
            # Another process was faster; what it wrote has the same name, and is as good.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR}:
                raise
        os.utime(path)

    def _shrink(self, *, keep: Path) -> None:
        kept = self.artifacts()
        total = sum(one.bytes for one in kept)
        for one in kept:
            if total <= self._limit_bytes:
                return
            if one.path != keep:
                _remove(one.path)
                total -= one.bytes

    def _sweep(self) -> None:
        """Remove what writers left that were killed; younger drafts may still be written."""
        now_ns = time.time_ns()
        for draft in self._directory.glob(f"*/{_DRAFT}*"):
            try:
                if now_ns - draft.stat().st_mtime_ns > _STALE_NS:
                    _remove(draft)
            except FileNotFoundError:
                continue


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""Disk space set aside, so that a run which fills the disk can still write down what it measured."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from tokenweir.core.errors import DiskFullError

RESERVE_BYTES: Final = 16 << 20
"""Room for the tables and the report of a run that a disk of any size cut short."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Reserve:
    """Holds ``size`` bytes of the file system of ``folder`` while entered; leaving gives them back.

    The file has no name, so nothing of it stays behind, however the process ends.

    Raises:
        DiskFullError: on entry: that much is not free.
    """

    def __init__(self, folder: Path, size: int = RESERVE_BYTES) -> None:
        self._folder = folder
        self._size = size
        self._file: BinaryIO | None = None

    @property
    def held_bytes(self) -> int:
        """How much the file system has set aside now."""
        return os.fstat(self._file.fileno()).st_blocks * 512 if self._file is not None else 0

    def __enter__(self) -> Self:
        file = tempfile.TemporaryFile(dir=self._folder)
        try:
            _fill(file, self._size)
        except OSError as error:
            file.close()
            if error.errno not in _FULL:
                raise
            raise DiskFullError(
                f"less than {self._size >> 20} MiB is free at {str(self._folder)!r}, too little to measure",
                mend="free some room there, or choose another folder with --out",
            ) from error
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _fill(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.write(bytes(size))
        file.flush()

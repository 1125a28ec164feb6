"""A model's own tokenizer, read from its file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

from tokenweir.core.errors import InputError, MissingExtraError

try:
    from tokenizers import Tokenizer as HfTokenizer
except ImportError:  # The extra is absent: who can do without a tokenizer still works.
    HfTokenizer = None

INSTALLED: Final = HfTokenizer is not None
"""Whether the library that reads such files is there."""
FILE: Final = "tokenizer.json"
OPTION: Final = "--tokenizer"


class FileTokenizer:
    """A ``tokenizer.json`` through the ``tokenizers`` library. Counts are exact.

    ``named`` is what messages call the setting that names it, and ``extra`` what installs the library.
    Raises InputError for a file that cannot be used, MissingExtraError without the library.
    """

    __slots__ = ("_hash", "_inner", "path")

    def __init__(self, path: Path, *, named: str = OPTION, extra: str = "bench") -> None:
        if HfTokenizer is None:
            raise MissingExtraError(
                f"reading {path} needs the package tokenizers", mend=f"install tokenweir[{extra}]"
            )
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(f"{named} {path}: {error.strerror or error}", mend="check the path") from error
        try:
            self._inner = HfTokenizer.from_buffer(raw)
        except ValueError as error:
            raise InputError(
                f"{named} {path} is no tokenizer.json: {error}",
                mend="give a tokenizer.json or a folder that holds one",
            ) from error
        # A file may ask for padding or truncation of training batches, which would falsify every count.
        self._inner.no_padding()
        self._inner.no_truncation()
        self._hash = hashlib.sha256(raw).hexdigest()
        self.path = path

    @property
    def exact(self) -> bool:
        """True: this is the model's own tokenizer."""
        return True

    @property
    def hash(self) -> str | None:
        """SHA-256 of the file, lower-case hex."""
        return self._hash

    def encode(self, text: str) -> Sequence[int]:
        """Return the token ids of ``text``, without special tokens."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        return self._inner.decode(list(ids))

    def encode_batch(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the token ids of every text; uses all cores."""
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of every sequence of ids; uses all cores."""
        return self._inner.decode_batch(cast("list[list[int]]", list(batch)))

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens every text has; uses all cores."""
        return [
            len(encoding) for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        ]


def tokenizer_file(path: Path, *, named: str = OPTION) -> Path:
    """Return the file that ``path`` means: itself, or the one in a model's folder. Raises InputError."""
    path = path.expanduser()
    if not path.is_dir():
        return path
    inside = path / FILE
    if not inside.is_file():
        raise InputError(
            f"{named} {path} holds no {FILE}", mend="give the file, or a model folder that has one"
        )
    return inside

"""The model's tokenizer where it can be had, else an honest estimate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from tokenweir.core.errors import InputError, MissingExtraError
from tokenweir.ports.tokenizer import Tokenizer

try:
    from tokenizers import Tokenizer as HfTokenizer
except ImportError:  # The bench extra is absent: estimates still work.
    HfTokenizer = None

BYTES_PER_TOKEN: Final = 4
"""What an estimate takes a token to be: the rule of thumb for English text."""

_BATCH: Final = 256


class FileTokenizer:
    """A ``tokenizer.json`` through the ``tokenizers`` library. Counts are exact."""

    __slots__ = ("_hash", "_inner", "path")

    def __init__(self, path: Path) -> None:
        if HfTokenizer is None:
            raise MissingExtraError(
                f"reading {path} needs the package tokenizers", mend="install tokenweir[bench]"
            )
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"--tokenizer {path}: {error.strerror or error}", mend="check the path"
            ) from error
        try:
            self._inner = HfTokenizer.from_buffer(raw)
        except ValueError as error:
            raise InputError(
                f"--tokenizer {path} is no tokenizer.json: {error}",
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


class EstimateTokenizer:
    """Stands in where no tokenizer is known: every 4 bytes of UTF-8 count as a token.

    The ids hold the bytes themselves, so decoding gives the text back; a cut inside a character drops it.
    """

    __slots__ = ()

    @property
    def exact(self) -> bool:
        """False: a record made with this says that its counts are estimated."""
        return False

    @property
    def hash(self) -> str | None:
        """``None``: there is no file."""
        return None

    def count(self, text: str) -> int:
        """Return how many ids :meth:`encode` would give."""
        return -(-len(text.encode()) // BYTES_PER_TOKEN)

    def encode(self, text: str) -> Sequence[int]:
        """Return one id per started group of 4 bytes."""
        raw = text.encode()
        groups = (raw[start : start + BYTES_PER_TOKEN] for start in range(0, len(raw), BYTES_PER_TOKEN))
        # The leading 1 keeps the length of groups that start with a zero byte.
        return [int.from_bytes(b"\x01" + group, "big") for group in groups]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text whose groups ``ids`` hold."""
        groups = (number.to_bytes(BYTES_PER_TOKEN + 1, "big").lstrip(b"\0")[1:] for number in map(int, ids))
        return b"".join(groups).decode(errors="ignore")


def find_tokenizer(hint: str | None, *, model_path: str | None = None) -> Tokenizer:
    """Return the tokenizer at ``hint``, else the one in the folder ``model_path``, else an estimate.

    ``hint`` is what the user named: a ``tokenizer.json`` or a model's folder; raises InputError when there is
    none. ``model_path`` is where the endpoint says its model lies, which need not be on this machine.
    """
    if hint is not None:
        return FileTokenizer(_tokenizer_file(Path(hint).expanduser()))
    if model_path is not None and HfTokenizer is not None:
        beside = Path(model_path) / "tokenizer.json"
        if beside.is_file():
            return FileTokenizer(beside)
    return EstimateTokenizer()


def _tokenizer_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    inside = path / "tokenizer.json"
    if not inside.is_file():
        raise InputError(
            f"--tokenizer {path} holds no tokenizer.json",
            mend="give the file, or a model folder that has one",
        )
    return inside


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> npt.NDArray[np.int32]:
    """Return the number of tokens of every text, int32."""
    if isinstance(tokenizer, EstimateTokenizer):
        return np.array([tokenizer.count(text) for text in texts], dtype=np.int32)
    if not isinstance(tokenizer, FileTokenizer):
        return np.array([len(tokenizer.encode(text)) for text in texts], dtype=np.int32)
    counts: list[int] = []
    # In batches, because an encoding takes a hundred times the memory of its text.
    for first in range(0, len(texts), _BATCH):
        counts += tokenizer.count_batch(texts[first : first + _BATCH])
    return np.array(counts, dtype=np.int32)

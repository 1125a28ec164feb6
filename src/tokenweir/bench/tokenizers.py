"""The model's tokenizer where it can be had, else an honest estimate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tokenweir.backends.tokenizer_file import FILE, INSTALLED, FileTokenizer, tokenizer_file
from tokenweir.ports.tokenizer import Tokenizer

BYTES_PER_TOKEN: Final = 4
"""What an estimate takes a token to be: the rule of thumb for English text."""

_BATCH: Final = 256


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
        return FileTokenizer(tokenizer_file(Path(hint)))
    if model_path is not None and INSTALLED:
        beside = Path(model_path) / FILE
        if beside.is_file():
            return FileTokenizer(beside)
    return EstimateTokenizer()


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

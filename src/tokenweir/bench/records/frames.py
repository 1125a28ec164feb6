"""Arrow tables as plain numpy columns, for the pure code in ``tokenweir.core``."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenweir.core.metrics.base import FloatArray


def numbers(table: pa.Table, names: Iterable[str]) -> dict[str, FloatArray]:
    """Return the named numeric columns as float64, with NaN for null (the convention of ``core.metrics``).

    Nanoseconds since the run's start are whole numbers below 2^53, which float64 holds exactly for 104 days.
    """
    return {name: table.column(name).to_numpy().astype(np.float64, copy=False) for name in names}


def integers(table: pa.Table, name: str, null: int) -> npt.NDArray[np.int64]:
    """Return an integer column as int64 with ``null`` in place of nulls."""
    parts = [
        chunk.fill_null(null).to_numpy(zero_copy_only=False).astype(np.int64)
        for chunk in table.column(name).chunks
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def codes(table: pa.Table, name: str, vocabulary: Sequence[str]) -> npt.NDArray[np.int16]:
    """Return each row's place in ``vocabulary``, or −1 for null and for words that are not in it."""
    places = {word: place for place, word in enumerate(vocabulary)}
    parts = [np.zeros(0, np.int16)]
    for chunk in table.column(name).chunks:
        encoded = chunk if isinstance(chunk, pa.DictionaryArray) else chunk.dictionary_encode()
        words = cast("list[str | None]", encoded.dictionary.to_pylist())
        # The last element answers for null.
        lookup = np.array([places.get(word or "", -1) for word in words] + [-1], np.int16)
        parts.append(lookup[encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)])
    return np.concatenate(parts)


def tally(table: pa.Table, name: str, rows: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Return how often each word of a string column occurs in the chosen rows, most frequent first."""
    counts: dict[str, int] = {}
    start = 0
    for chunk in table.column(name).chunks:
        encoded = chunk if isinstance(chunk, pa.DictionaryArray) else chunk.dictionary_encode()
        words = cast("list[str | None]", encoded.dictionary.to_pylist())
        known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
        index = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        chosen = index[known & rows[start : start + len(chunk)]]
        start += len(chunk)
        for place in np.flatnonzero(found := np.bincount(chosen, minlength=len(words))):
            word = words[int(place)] or ""
            counts[word] = counts.get(word, 0) + int(found[place])
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

"""Operations on arrays whose types MLX does not state, with types."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import utils as _utils
from numpy.typing import NDArray


def evaluate(*values: object) -> None:
    """Compute arrays, nested in whatever way, and wait for them."""
    cast("Any", mx).eval(*values)


def begin(*values: object) -> None:
    """Begin to compute arrays, nested in whatever way."""
    cast("Any", mx).async_eval(*values)


def named_arrays(tree: object) -> list[tuple[str, mx.array]]:
    """Return the arrays nested in ``tree``, with their paths."""
    found: Any = cast("Any", _utils).tree_flatten(tree)
    return [(name, value) for name, value in found if isinstance(value, mx.array)]


def from_numpy(values: NDArray[Any]) -> mx.array:
    """Return numpy's values as an array."""
    return mx.array(cast("Any", values))


def to_numpy(values: mx.array) -> NDArray[np.float32]:
    """Return floats as numpy has them, flat."""
    wide = values if values.dtype == mx.float32 else values.astype(mx.float32)
    return np.array(cast("Any", wide), dtype=np.float32, copy=None).reshape(-1)


def integers(values: mx.array) -> list[int]:
    """Return a row of integers."""
    return cast("list[int]", values.tolist())


def add_at(rows: mx.array, columns: mx.array, values: mx.array) -> mx.array:
    """Return ``rows`` with ``values`` added at ``columns``, as often as each occurs."""
    found: Any = cast("Any", rows).at[:, columns].add(values.astype(rows.dtype))
    return cast("mx.array", found)

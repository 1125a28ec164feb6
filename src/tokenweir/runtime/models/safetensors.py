"""The headers of safetensors files: which tensors there are, without reading one.

Source: the safetensors format: 8 bytes of header length, little-endian, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import msgspec

from tokenweir.core.errors import InputError

_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000
_AGAIN: Final = "copy or download the file again"

FLOATS: Final = frozenset({"F16", "BF16", "F32"})
"""Types whose values an engine computes with; others are packed or whole numbers."""

_BYTES: Final = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
_FLOAT_BYTES: Final = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor as its file's header describes it; ``data_offsets`` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return self.data_offsets[1] - self.data_offsets[0]

    @property
    def values(self) -> int:
        """How many numbers it holds, packed ones counted as their words."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        InputError: it cannot be read, is no safetensors file, or holds fewer or more bytes than it states.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            size = path.stat().st_size
            if size < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
                raise InputError(f"{path} of {size} bytes is no whole safetensors file", mend=_AGAIN)
            header = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", mend="check the file") from error
    tensors = _decode(path, header)
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    stated = _LENGTH_BYTES + length + end
    if stated != size:
        fault = "is cut short" if size < stated else "is longer than its header says"
        raise InputError(f"{path} {fault}: {size} bytes of {stated}", mend=_AGAIN)
    return tensors


def _decode(path: Path, header: bytes) -> dict[str, Tensor]:
    try:
        parts = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        tensors = {
            name: msgspec.json.decode(raw, type=Tensor)
            for name, raw in parts.items()
            if name != "__metadata__"
        }
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is no safetensors file: {error}", mend=_AGAIN) from error
    for name, tensor in tensors.items():
        begin, end = tensor.data_offsets
        width = (_BYTES | _FLOAT_BYTES).get(tensor.dtype)
        if not 0 <= begin <= end or (width is not None and end - begin != width * tensor.values):
            raise InputError(
                f"{path}: tensor {name!r} of shape {list(tensor.shape)} and type {tensor.dtype} "
                f"cannot lie at bytes {begin} to {end}",
                mend=_AGAIN,
            )
    return tensors

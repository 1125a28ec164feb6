"""Frames on a byte stream: a 4-byte big-endian length and that many bytes. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tokenweir.core.errors import ProtocolError
from tokenweir.runtime.bridge.messages import LENGTH_BYTES, MAX_FRAME_BYTES

_COMPACT_BYTES: Final = 1 << 20


class FrameReader:
    """Cuts a byte stream into frames, however the stream was cut before.

    Holds at most one frame of ``max_bytes`` and what one ``feed`` brought.
    """

    __slots__ = ("_data", "_max_bytes", "_start")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._data = bytearray()
        self._start = 0
        self._max_bytes = max_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Yield the payload of each frame that ``data`` completes; iterate to the end before the next call.

        Raises:
            ProtocolError: a frame announces more than ``max_bytes``. The stream cannot be read on after that.
        """
        self._data += data
        while True:
            begin = self._start + LENGTH_BYTES
            if len(self._data) < begin:
                break
            length = int.from_bytes(self._data[self._start : begin], "big")
            if length > self._max_bytes:
                raise ProtocolError(
                    f"a frame announces {length:,} bytes; at most {self._max_bytes:,} may come",
                    mend="the peer does not speak the bridge's protocol",
                )
            if len(self._data) < begin + length:
                break
            self._start = begin + length
            yield bytes(self._data[begin : self._start])
        if self._start == len(self._data):
            self._data.clear()
            self._start = 0
        elif self._start > _COMPACT_BYTES:
            del self._data[: self._start]
            self._start = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not whole yet; above 0 at the end of a stream, the stream was cut."""
        return len(self._data) - self._start


def seal(frame: bytearray, max_bytes: int = MAX_FRAME_BYTES) -> bytearray:
    """Write the length into the first four bytes of ``frame``, which were kept free for it, and return it.

    Raises:
        ProtocolError: the payload is longer than ``max_bytes``.
    """
    length = len(frame) - LENGTH_BYTES
    if length > max_bytes:
        raise ProtocolError(
            f"a message of {length:,} bytes is too long; at most {max_bytes:,} may be sent",
            mend="send smaller images or fewer inputs at once",
        )
    frame[:LENGTH_BYTES] = length.to_bytes(LENGTH_BYTES, "big")
    return frame

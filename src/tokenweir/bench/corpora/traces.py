"""Trace files: when requests came, and how long they were or what they said."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from tokenweir.bench.corpora.lines import CorpusLine, read_bytes, read_json_lines, to_sample
from tokenweir.core.corpus import Sample
from tokenweir.core.errors import CorpusError


class TraceLine(CorpusLine, frozen=True, kw_only=True):
    """One request of a trace; ``timestamp`` in milliseconds, lengths in tokens."""

    timestamp: float
    input_length: int | None = None
    output_length: int | None = None


class TraceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A read trace, in order of time, the first request at 0.

    ``samples`` is empty where the trace has lengths only; else ``input_tokens`` is empty. ``output_tokens``
    is -1 where a line does not say.
    """

    path: str
    name: str
    digest: str
    times_ns: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    samples: tuple[Sample, ...]


@lru_cache(maxsize=4)
def load_trace(path: str) -> TraceFile:
    """Read a trace: JSON lines with ``timestamp`` (ms) and either lengths or a prompt or messages.

    Raises CorpusError with file, line and reason.
    """
    raw = read_bytes(Path(path))
    lines = list(read_json_lines(Path(path), raw, TraceLine))
    if not lines:
        message = f"{path} holds no request"
        raise CorpusError(
            message, mend='write lines such as {"timestamp": 0, "input_length": 100, "output_length": 50}'
        )
    for number, line in lines:
        _check(path, number, line)
    lines.sort(key=lambda item: item[1].timestamp)
    worded = [line.prompt is not None or bool(line.messages) for _, line in lines]
    if any(worded) and not all(worded):
        raise CorpusError(
            f"{path}:{lines[worded.index(False)][0]}: other lines hold text, this one only a length",
            mend="give every line a prompt or messages, or none",
        )
    samples = (
        tuple(to_sample(Path(path), number, _sized(line)) for number, line in lines) if any(worded) else ()
    )
    first = lines[0][1].timestamp
    return TraceFile(
        path=path,
        name=Path(path).name,
        digest=hashlib.sha256(raw).hexdigest(),
        times_ns=np.array([(line.timestamp - first) * 1e6 for _, line in lines]),
        input_tokens=np.array([] if samples else [line.input_length for _, line in lines], dtype=np.int32),
        output_tokens=np.array([_output(line) for _, line in lines], dtype=np.int32),
        samples=samples,
    )


def _sized(line: TraceLine) -> TraceLine:
    """Return a line whose answer is as long as recorded, unless it says another bound itself."""
    return (
        line if line.max_tokens is not None else msgspec.structs.replace(line, max_tokens=line.output_length)
    )


def _output(line: TraceLine) -> int:
    length = line.output_length if line.output_length is not None else line.max_tokens
    return -1 if length is None else length


def _check(path: str, number: int, line: TraceLine) -> None:
    reason = ""
    if not math.isfinite(line.timestamp):
        reason = f"timestamp {line.timestamp!r} is no time"
    elif line.prompt is None and not line.messages and line.input_length is None:
        reason = "neither input_length nor prompt nor messages"
    elif line.input_length is not None and line.input_length < 1:
        reason = f"input_length {line.input_length!r} is below 1"
    elif line.output_length is not None and line.output_length < 1:
        reason = f"output_length {line.output_length!r} is below 1"
    if reason:
        raise CorpusError(f"{path}:{number}: {reason}")

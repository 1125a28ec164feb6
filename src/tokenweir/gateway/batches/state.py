"""What is known of a batch, as it is kept and as it is shown."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, cast

import msgspec

from tokenweir.core.ids import format_id
from tokenweir.core.requests import Json
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.batches import BatchRecord

_S: Final = 1_000_000_000

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch failed; ``line`` is counted from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Used(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Tokens of all lines that were answered."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class BatchState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What changes of a batch. Instants are Unix ns; files and errors are OpenAI's.

    ``times`` says when it became what. ``refused`` are lines that were not accepted, by their number. ``keeps_ns`` is
    how long its files are kept.
    """

    endpoint: str
    input_file: str
    expires_at: int
    keeps_ns: int
    metadata: dict[str, str] = {}
    status: Status = "validating"
    times: dict[str, int] = {}
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[LineError] = []
    refused: dict[int, LineError] = {}
    output_file: str | None = None
    error_file: str | None = None
    model: str | None = None
    used: Used = msgspec.field(default_factory=Used)

    def become(self, status: Status, at: int) -> None:
        """Change the status; the first time it is one is kept."""
        self.status = status
        self.times.setdefault(f"{status}_at", at)


class BatchCounts:
    """What this process has done: batches by the status they ended in, lines by what became of them.

    A line that is come by again, after a batch was taken over, is counted once.
    """

    def __init__(self) -> None:
        self.ended: Counter[Status] = Counter()
        self.lines: Counter[Literal["completed", "failed"]] = Counter()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(BatchState).decode


def seal(sealer: Sealer, batch: bytes, state: BatchState) -> bytes:
    """Return a state as it is stored."""
    return sealer.seal(batch, _encode(state))


def open_state(sealer: Sealer, record: BatchRecord) -> BatchState:
    """Return the state that a batch is stored with. Raises SealError."""
    return _decode(sealer.open(record.batch, record.state))


def batch_id(batch: bytes) -> str:
    """Return ``batch_…``."""
    return format_id("batch", int.from_bytes(batch, "big"))


_SHOWN: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


def shown(record: BatchRecord, state: BatchState) -> dict[str, Json]:
    """Return a batch as OpenAI shows it."""
    status = state.status
    times = {name: at // _S for name, at in state.times.items()}
    if record.cancel_at is not None and record.ended_at is None:
        # Whoever works on it obeys shortly.
        status = "cancelling"
        times.setdefault("cancelling_at", record.cancel_at // _S)
    used = state.used
    ended = record.ended_at is not None
    return {
        "id": batch_id(record.batch),
        "object": "batch",
        "endpoint": state.endpoint,
        "model": state.model,
        "errors": {"object": "list", "data": cast("Json", msgspec.to_builtins(state.errors))}
        if state.errors
        else None,
        "input_file_id": state.input_file,
        "completion_window": "24h",
        "status": status,
        "output_file_id": state.output_file if ended else None,
        "error_file_id": state.error_file if ended else None,
        "created_at": record.at // _S,
        "expires_at": state.expires_at // _S,
        **{f"{name}_at": times.get(f"{name}_at") for name in _SHOWN},
        "request_counts": {"total": state.total, "completed": state.completed, "failed": state.failed},
        "usage": {
            "input_tokens": used.input_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens},
            "output_tokens": used.output_tokens,
            "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
            "total_tokens": used.input_tokens + used.output_tokens,
        },
        "metadata": cast("Json", state.metadata),
    }

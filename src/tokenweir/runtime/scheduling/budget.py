"""Bytes of the device: what weights hold, what requests reserve, what is left, and the arithmetic in words."""

from __future__ import annotations

from typing import Final

from tokenweir.core.errors import NoMemoryError
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.scheduling.tickets import Ticket

_KIB: Final = 1024


def kv_bytes(card: ModelCard, *, prompt_tokens: int, max_tokens: int, sequences: int = 1) -> int:
    """Return the cache that a request takes at its longest.

    Formula: (prompt tokens + max_tokens) · sequences · bytes per token of the model's cache.
    """
    return (prompt_tokens + max_tokens) * sequences * card.kv_bytes_per_token


def text(amount: int) -> str:
    """Return an amount of memory as people read it: ``1.50 GiB``."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if amount >= _KIB**power:
            return f"{amount / _KIB**power:.2f} {unit}"
    return f"{amount} bytes"


class Budget:
    """A bound on bytes, with the weights of the models in memory and the reservations of requests against it.

    ``reserved_bytes`` are set aside for good, for the prefix cache.
    """

    __slots__ = ("_held", "_taken", "_weights", "limit_bytes", "reserved_bytes")

    def __init__(self, limit_bytes: int, *, reserved_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = reserved_bytes
        self._weights: dict[str, int] = {}
        self._held: dict[int, int] = {}
        self._taken = 0

    @property
    def weights_bytes(self) -> int:
        """What the weights of all models hold."""
        return sum(self._weights.values())

    @property
    def taken_bytes(self) -> int:
        """What running requests have reserved."""
        return self._taken

    @property
    def free_bytes(self) -> int:
        """What a request can still reserve; negative where more is taken than there is."""
        return self.room_bytes - self._taken

    @property
    def room_bytes(self) -> int:
        """What all requests together can reserve."""
        return self.limit_bytes - self.reserved_bytes - self.weights_bytes

    def set_weights(self, model: str, weights_bytes: int) -> None:
        """Count a model's weights; 0 forgets it."""
        self._weights.pop(model, None)
        if weights_bytes:
            self._weights[model] = weights_bytes

    def take(self, ticket: Ticket) -> None:
        """Reserve a ticket's bytes. Whether they are free is the caller's business."""
        self._held[ticket.id] = ticket.kv_bytes
        self._taken += ticket.kv_bytes

    def give_back(self, ticket_id: int) -> None:
        """Release what a ticket reserved; one that reserved nothing is ignored."""
        self._taken -= self._held.pop(ticket_id, 0)

    def misfit(self, ticket: Ticket) -> NoMemoryError | None:
        """Return why a ticket could not be served even if nothing else ran; ``None`` where it could."""
        if ticket.kv_bytes <= self.room_bytes:
            return None
        own = self._weights.get(ticket.model, 0)
        others = self.weights_bytes - own
        parts = [f"{text(own)} of weights"]
        if others:
            parts.append(f"{text(others)} of other models")
        if self.reserved_bytes:
            parts.append(f"{text(self.reserved_bytes)} of prefix cache")
        tokens = f"({ticket.prompt_tokens} prompt + {ticket.max_tokens} answer tokens)"
        if ticket.sequences > 1:
            tokens += f" × {ticket.sequences} sequences"
        parts.append(f"{text(ticket.kv_bytes)} for {tokens}")
        needed = self.limit_bytes - self.room_bytes + ticket.kv_bytes
        return NoMemoryError(
            f"the request does not fit into {text(self.limit_bytes)}: {' + '.join(parts)} = {text(needed)}",
            mend="ask for fewer tokens"
            + (", unload another model," if others else "")
            + " or raise runtime.memory_limit",
        )

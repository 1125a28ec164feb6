"""Sealing files and batches anew with the present key."""

from __future__ import annotations

from typing import Final

from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.batches import BatchResealing
from tokenweir.ports.files import FileResealing

_PIECES: Final = 16
"""Pieces that are held in memory at once."""
_STATES: Final = 200


async def rotate_files(files: FileResealing, batches: BatchResealing, sealer: Sealer) -> int:
    """Seal anew what is not sealed with the present key; returns how many pieces and batches that were.

    Raises SealError where a key is not configured.
    """
    done = 0
    while pieces := await files.unlike(sealer.prefix, _PIECES):
        await files.replace(
            [(file, place, sealer.seal(file, sealer.open(file, data))) for file, place, data in pieces]
        )
        done += len(pieces)
    while states := await batches.unlike(sealer.prefix, _STATES):
        await batches.replace(
            [(batch, state, sealer.seal(batch, sealer.open(batch, state))) for batch, state in states]
        )
        done += len(states)
    return done

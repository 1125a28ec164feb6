"""Independent random streams from one seed, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Return the random stream of ``seed`` for a purpose, such as ``arrivals``, and keys, such as a load.

    Streams of different purposes or keys are independent; the same arguments give the same stream with any
    build of one NumPy release. ``seed`` and ``keys`` must not be negative.

    Source: NumPy's SeedSequence over PCG64.
    """
    name = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, name, *keys])))

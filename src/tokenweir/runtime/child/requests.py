"""A request that has been checked and tokenised: all that the device thread needs to know of it."""

from __future__ import annotations

import msgspec

from tokenweir.ports.inference import Decoding, Lane
from tokenweir.runtime.child.answer import AnswerRules


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One stream to be. ``choices`` holds the decoding of each of its sequences, which share the prompt."""

    stream: int
    model: str
    tokens: tuple[int, ...]
    choices: tuple[Decoding, ...]
    rules: AnswerRules = AnswerRules()
    images: tuple[bytes, ...] = ()
    lane: Lane = "batch"
    use_prefix_cache: bool = True

"""What the runtime can be asked for beyond the common request model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from tokenweir.ports.inference import Guidance

Priority = Literal["interactive", "normal", "background"]
"""Who goes first: people who wait, programs, and work that may be shed under load."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the runtime treats one request. ``None`` leaves a choice to the model's settings.

    ``timeout_ns`` counts from acceptance: a request not finished by then fails as ``timeout``. ``use_draft``,
    ``kv_bits`` and a seed put a request into the exclusive lane. ``use_prefix_cache`` false neither reads nor
    writes the prefix cache. ``top_logprobs`` of the request is ``GenerateRequest.sampling.logprobs``.
    """

    priority: Priority = "normal"
    timeout_ns: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = {}
    guidance: Guidance | None = None
    kv_bits: Literal[4, 8] | None = None
    use_draft: bool | None = None
    draft_tokens: int | None = None
    use_prefix_cache: bool = True

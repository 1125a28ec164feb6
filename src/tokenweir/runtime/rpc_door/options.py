"""The runtime's own options, out of a message."""

from __future__ import annotations

from typing import Final

from tokenweir.core.errors import ParameterError
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.options import Priority, RunOptions
from tokenweir.wire.v1 import inference_pb2 as pb

_PRIORITIES: Final[dict[int, Priority]] = {
    pb.PRIORITY_UNSPECIFIED: "normal",
    pb.PRIORITY_INTERACTIVE: "interactive",
    pb.PRIORITY_NORMAL: "normal",
    pb.PRIORITY_BACKGROUND: "background",
}
_KINDS: Final = ("json_schema", "regex", "grammar", "choice")
_KV_BITS: Final = (4, 8)


def from_options(made: pb.Options, *, remaining_ns: int | None) -> RunOptions:
    """Return the options; ``remaining_ns`` is what is left of the call's own deadline, which no option outlives.

    Raises:
        ParameterError: a value is none of those there are.
    """
    timeouts = [remaining_ns, made.timeout_ns if made.HasField("timeout_ns") else None]
    priority = _PRIORITIES.get(made.priority)
    if priority is None:
        raise ParameterError(
            f"the priority {made.priority} is not known", param="options.priority", mend="set one of Priority"
        )
    kv_bits = made.kv_bits if made.HasField("kv_bits") else None
    if kv_bits is not None and kv_bits not in _KV_BITS:
        raise ParameterError(f"kv_bits is {kv_bits}", param="options.kv_bits", mend="it must be 4 or 8")
    return RunOptions(
        priority=priority,
        timeout_ns=min((one for one in timeouts if one is not None), default=None),
        min_p=made.min_p if made.HasField("min_p") else None,
        repetition_penalty=made.repetition_penalty if made.HasField("repetition_penalty") else None,
        logit_bias=dict(made.logit_bias),
        guidance=_guidance(made.guidance) if made.HasField("guidance") else None,
        kv_bits=kv_bits,
        use_draft=made.use_draft if made.HasField("use_draft") else None,
        draft_tokens=made.draft_tokens if made.HasField("draft_tokens") else None,
        use_prefix_cache=made.use_prefix_cache if made.HasField("use_prefix_cache") else True,
    )


def _guidance(made: pb.Guidance) -> Guidance:
    if made.kind not in _KINDS:
        raise ParameterError(
            f"the guidance {made.kind!r} is not known",
            param="options.guidance.kind",
            mend=f"use one of {', '.join(_KINDS)}",
        )
    return Guidance(kind=made.kind, value=made.value)

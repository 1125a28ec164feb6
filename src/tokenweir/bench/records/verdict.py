"""Whether a load point's numbers speak of the server or of the client; ``docs/metrics.md`` has the limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tokenweir.bench.records.model import Client, Reads, Verdict

LAG_MAX_MS: Final = 1.0
"""Open loop: dispatch lag at p99 above this is the client's doing, however slow the server."""
LAG_FLOOR_MS: Final = 0.1
"""Open loop: dispatch lag at p99 below this is the timer's own precision, however fast the server."""
LAG_SHARE: Final = 0.05
"""Dispatch lag at p99 as a share of the median TTFT (open loop) or E2EL (closed loop)."""
CPU_BUSY_MAX: Final = 0.9
"""The busiest worker's CPU time over wall time."""
GAPS_EXCLUDED_MAX: Final = 0.01
"""Share of the gaps between chunks that touch a read which held several."""
USER_CLOCK_STREAMS: Final = 256
"""Streams in flight above which a clock read in user space is late by more than it measures."""
SENT_MIN: Final = 0.95
"""Open loop: requests sent over requests scheduled, inside the window."""
STEAL_MAX: Final = 0.1
"""CPU time that the hypervisor gave to others, over wall time."""


class Evidence(Client, frozen=True, kw_only=True):
    """What a verdict is drawn from, beside the client's conduct. Medians are ``None`` where undefined."""

    open_loop: bool
    scheduled: int
    sent: int
    in_flight_max: int
    measured: int
    ttft_p50_ms: float | None
    e2el_p50_ms: float | None


def judge(evidence: Evidence, reads: Reads) -> Verdict:
    """Return *client-bound* with every reason against the client, else *trusted* with the reasons for it."""
    against = tuple(_against(evidence, reads))
    if against:
        return Verdict(trust="client-bound", reasons=against)
    return Verdict(trust="trusted", reasons=tuple(_in_favour(evidence, reads)))


def lag_limit_ms(evidence: Evidence) -> float:
    """Return the dispatch lag at p99 that is still accepted.

    Formula: open loop 5 % of the median TTFT, at least 0.1 ms and at most 1 ms; closed loop, where lag costs
    load but no accuracy, 5 % of the median E2EL, at least 1 ms.
    """
    if not evidence.open_loop:
        return max(LAG_MAX_MS, LAG_SHARE * (evidence.e2el_p50_ms or 0.0))
    if evidence.ttft_p50_ms is None:
        return LAG_MAX_MS
    return min(LAG_MAX_MS, max(LAG_FLOOR_MS, LAG_SHARE * evidence.ttft_p50_ms))


def _against(evidence: Evidence, reads: Reads) -> Iterator[str]:
    if not evidence.measured:
        yield "no request was measured"
    lag, limit = evidence.dispatch_lag_p99_ms, lag_limit_ms(evidence)
    if lag is not None and lag > limit:
        yield f"dispatch lag p99 is {lag:.3g} ms, above {limit:.3g} ms"
    if evidence.cpu_busy_max > CPU_BUSY_MAX:
        yield f"the busiest worker used {100 * evidence.cpu_busy_max:.0f} % of a core, above {100 * CPU_BUSY_MAX:.0f} %"
    if reads.gaps and reads.gaps_excluded >= GAPS_EXCLUDED_MAX * reads.gaps:
        share = reads.gaps_excluded / reads.gaps
        yield (
            f"{100 * share:.2f} % of the gaps touch a read that held several chunks, "
            f"{100 * GAPS_EXCLUDED_MAX:.0f} % or more: chunks came together, or the client read late"
        )
    if evidence.timestamp_source == "user" and evidence.in_flight_max > USER_CLOCK_STREAMS:
        yield (
            f"user-space timestamps with {evidence.in_flight_max} streams in flight, "
            f"above {USER_CLOCK_STREAMS}"
        )
    if evidence.clock_steps:
        yield f"the clock was stepped {evidence.clock_steps} times"
    if evidence.open_loop and evidence.sent < SENT_MIN * evidence.scheduled:
        yield (
            f"{evidence.sent} of {evidence.scheduled} scheduled requests were sent inside the window, "
            f"below {100 * SENT_MIN:.0f} %"
        )
    if evidence.steal_ratio is not None and evidence.steal_ratio > STEAL_MAX:
        taken = f"{100 * evidence.steal_ratio:.0f} %"
        yield f"the machine's host took {taken} of its CPU time, above {100 * STEAL_MAX:.0f} %"


def _in_favour(evidence: Evidence, reads: Reads) -> Iterator[str]:
    if evidence.dispatch_lag_p99_ms is not None:
        yield (
            f"dispatch lag p99 is {evidence.dispatch_lag_p99_ms:.3g} ms, "
            f"within {lag_limit_ms(evidence):.3g} ms"
        )
    yield f"the busiest worker used {100 * evidence.cpu_busy_max:.0f} % of a core"
    if reads.gaps:
        yield f"{100 * reads.gaps_excluded / reads.gaps:.2f} % of the gaps touch a read that held several chunks"
    yield f"arrival is stamped by the {'kernel' if evidence.timestamp_source == 'kernel' else 'client'}"

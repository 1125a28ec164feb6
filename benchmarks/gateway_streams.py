"""Streams relayed at once: chunks a second at the pace of the servers, and the memory that an open stream takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.gateway_load import Door, Load, drive, gateway, request, simulator
from benchmarks.harness import Figure, Result, measured

PATH = "/v1/chat/completions"
BODY = b'{"model":"sim","messages":[{"role":"user","content":"go"}],"max_tokens":1000000,"stream":true}'
STREAMS = 1_000
ITL = "constant:25ms"
WINDOW_S = 3.0

FIGURES = (
    Figure("chunks relayed", "chunks/s", ()),
    Figure("chunks relayed per CPU-second", "chunks/CPU-s", (), 40_000.0),
    Figure("CPU time of a chunk", "µs", ()),
    Figure("memory of an open stream", "KiB", ()),
)


def measure(rounds: int) -> Result:
    """Measure a gateway that is started anew for each round, so that its memory is a fresh one's."""
    how = f"{STREAMS:,} streams at {ITL} for a token, each with a connection of its own on both sides"
    return measured("gateway_streams", how, rounds, _round, FIGURES)


def _round(_out: Path) -> Mapping[str, float]:
    with (
        simulator(
            ttft="uniform:50ms..500ms", itl=ITL, context_tokens=2_000_000, connections=2 * STREAMS
        ) as sim,
        gateway(sim.url) as door,
    ):
        _warm(door)
        before = door.rss_bytes
        load = Load(request(PATH, BODY, door.key), STREAMS, WINDOW_S, ramp_s=2.0)
        loaded, (cpu,) = drive(door.url, load, doors=[door])
        held = door.peak_rss_bytes - before
    return {
        "chunks relayed": loaded.chunks / loaded.seconds,
        "chunks relayed per CPU-second": loaded.chunks / cpu,
        "CPU time of a chunk": cpu / loaded.chunks * 1e6,
        "memory of an open stream": held / STREAMS / 1024,
    }


def _warm(door: Door) -> None:
    """Have one short answer streamed, so that what is loaded once does not count as a stream's."""
    body = BODY.replace(b"1000000", b"4")
    drive(door.url, Load(request(PATH, body, door.key), 1, 0.3, ramp_s=0.2))

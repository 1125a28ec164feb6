"""Requests relayed at once and not streamed: how many on one core, what one costs, and how much time it adds.

LiteLLM's proxy, in an environment of its own, is asked the same of the same simulator in the same round, and so is a
process that passes bytes on and does nothing else. Those that are not measured stand idle on the core.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.byte_relay import byte_relay
from benchmarks.gateway_load import Door, Load, drive, gateway, request, simulator
from benchmarks.harness import SERVER_CORE, Figure, Result, measured
from benchmarks.servers import free_port, server
from tokenweir.sim.process import SimProcess

HERE = Path(__file__).parent
PATH = "/v1/chat/completions"
BODY = b'{"model":"sim","messages":[{"role":"user","content":"How many rivers are there?"}],"max_tokens":8}'
SATURATED, PEER_SATURATED, ALONE = 64, 16, 1
WINDOW_S = 3.0
PEER_KEY = "sk-benchmark"

FIGURES = (
    Figure("requests", "requests/s", (), 9_000.0),
    Figure("requests per CPU-second", "requests/CPU-s", (), 9_000.0),
    Figure("CPU time of a request", "µs", ()),
    Figure("latency p99, 64 in flight", "ms", ()),
    Figure("added at p50, one in flight", "ms", (), 0.3, "lower"),
    Figure("failed", "requests", (), 0.0, "lower"),
    Figure("requests, times LiteLLM's", "×", (), 40.0),
    Figure("bytes passed on alone: requests", "requests/s", ()),
    Figure("bytes passed on alone: added at p50", "ms", ()),
    Figure("LiteLLM: requests", "requests/s", ()),
    Figure("LiteLLM: CPU time of a request", "µs", ()),
    Figure("LiteLLM: added at p50, one in flight", "ms", ()),
)


def measure(rounds: int) -> Result:
    """Measure our gateway and LiteLLM's proxy in turns."""
    how = (
        f"non-streamed chat of 8 tokens, {SATURATED} in flight ({PEER_SATURATED} for LiteLLM); the gateway has a core,"
        " simulator and client the other"
    )
    command = peer_command()
    with (
        simulator(ttft="0us", itl="0us", connections=1024) as sim,
        gateway(sim.url) as ours,
        byte_relay(sim.url) as limit,
        litellm(command, sim) as theirs,
    ):
        return measured("gateway_direct", how, rounds, lambda _: _round(sim, ours, limit, theirs), FIGURES)


def peer_command() -> Path:
    """Return the command of LiteLLM, installed from the locked file on first use."""
    home = HERE / "cache" / "litellm"
    command = home / "bin" / "litellm"
    if not command.exists():
        print("  installing LiteLLM into its own environment, once", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        locked = ["--require-hashes", "-r", str(HERE / "requirements-gateway-peers.txt")]
        subprocess.run([*install, "--disable-pip-version-check", *locked], check=True)
    return command


@contextmanager
def litellm(program: Path, sim: SimProcess) -> Generator[Door]:
    """Run LiteLLM's proxy with one worker, before the simulator, on the gateway's core."""
    port = free_port()
    settings = HERE / "cache" / "litellm.yaml"
    settings.write_text(
        "model_list:\n  - model_name: sim\n    litellm_params:\n      model: openai/sim\n"
        f"      api_base: {sim.url}/v1\n      api_key: none\n"
        f"general_settings:\n  master_key: {PEER_KEY}\n"
    )
    command = [str(program), "--config", str(settings), "--host", "127.0.0.1", "--port", str(port)]
    # Nothing is to be looked up elsewhere, and no line is to be written for a request.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with server(command, lambda _: _alive(port), cores=[SERVER_CORE], environment=quiet) as started:
        yield Door(f"http://127.0.0.1:{port}", PEER_KEY, started.pid)


def _alive(port: int) -> bool:
    with suppress(OSError):
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        asking.request("GET", "/health/liveliness")
        return asking.getresponse().status == http.client.OK
    return False


def _round(sim: SimProcess, ours: Door, limit: Door, theirs: Door) -> Mapping[str, float]:
    plain, _ = drive(sim.url, Load(request(PATH, BODY), ALONE, 1.0))
    low, _ = drive(ours.url, Load(request(PATH, BODY, ours.key), ALONE, 1.0))
    full, (cpu,) = drive(ours.url, Load(request(PATH, BODY, ours.key), SATURATED, WINDOW_S), doors=[ours])
    bare_low, _ = drive(limit.url, Load(request(PATH, BODY), ALONE, 1.0))
    bare, _ = drive(limit.url, Load(request(PATH, BODY), SATURATED, WINDOW_S))
    peer_low, _ = drive(theirs.url, Load(request(PATH, BODY, theirs.key), ALONE, WINDOW_S))
    peer, (peer_cpu,) = drive(
        theirs.url, Load(request(PATH, BODY, theirs.key), PEER_SATURATED, WINDOW_S), doors=[theirs]
    )
    return {
        "requests": full.rate,
        "requests per CPU-second": full.answers / cpu,
        "CPU time of a request": cpu / full.answers * 1e6,
        "latency p99, 64 in flight": full.quantile_ms(0.99),
        "added at p50, one in flight": low.quantile_ms(0.5) - plain.quantile_ms(0.5),
        "failed": float(low.failures + full.failures),
        "requests, times LiteLLM's": full.rate / peer.rate,
        "bytes passed on alone: requests": bare.rate,
        "bytes passed on alone: added at p50": bare_low.quantile_ms(0.5) - plain.quantile_ms(0.5),
        "LiteLLM: requests": peer.rate,
        "LiteLLM: CPU time of a request": peer_cpu / peer.answers * 1e6,
        "LiteLLM: added at p50, one in flight": peer_low.quantile_ms(0.5) - plain.quantile_ms(0.5),
    }

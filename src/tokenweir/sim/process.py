"""A simulator as a child process, for tests, the demo and calibration."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from types import TracebackType
from typing import Final, Self, TypedDict, Unpack, cast
from urllib.parse import urlsplit

import msgspec

from tokenweir.core.errors import ResourceError, UpstreamError
from tokenweir.core.requests import Json
from tokenweir.sim.options import READY_PREFIX, READY_SUFFIX

_STOP_TIMEOUT_S: Final = 5.0
_ASK_TIMEOUT_S: Final = 30.0
_OK: Final = 200


class SimFlags(TypedDict, total=False):
    """The options of :class:`tokenweir.sim.options.Options`, all of them optional."""

    host: str
    port: int
    model: str
    commit: str | None
    revision: str | None
    seed: int
    ttft: str
    itl: str
    prefill: str
    slowdown: float
    max_batch: int
    max_waiting: int
    kv_tokens: int
    context_tokens: int
    tokens_per_chunk: str
    output_tokens: str
    default_tokens: int
    eos: float
    prefix_cache_tokens: int
    embedding_size: int
    early_headers: bool
    strict_model: bool
    script: str | None
    tokenizer: str | None
    faults: tuple[str, ...]
    api_key: str | None
    connections: int
    max_body_bytes: int


class SimProcess:
    """A simulator in a process of its own, on a free port unless told otherwise.

    ::

        with SimProcess(ttft="constant:5ms", itl="constant:1ms") as sim:
            measure(sim.url)
            print(sim.truth()["ttft_ms"])

    ``cpus`` binds the process to those processors, where the platform can. The simulator ends with the process
    that started it, however that one ends.
    """

    def __init__(self, *, cpus: frozenset[int] | None = None, **flags: Unpack[SimFlags]) -> None:
        self._flags: SimFlags = {"port": 0, **flags}
        self._cpus = cpus
        self._child: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The base URL, such as ``http://127.0.0.1:40123``."""
        return self._url

    @property
    def pid(self) -> int:
        """The process id. Raises ResourceError when the simulator does not run."""
        return self._running().pid

    def start(self) -> Self:
        """Start the process and wait for its ready line. Raises ResourceError with what it said instead."""
        command = [sys.executable, "-m", "tokenweir.sim"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._child = child
        stdin, stdout = child.stdin, child.stdout
        if stdin is None or stdout is None:
            raise ResourceError("the simulator has no pipes", mend="report this")
        if self._cpus is not None and sys.platform == "linux":
            os.sched_setaffinity(child.pid, self._cpus)
        stdin.write(msgspec.json.encode(self._flags) + b"\n")
        stdin.flush()
        line = stdout.readline().decode().strip()
        if not (line.startswith(READY_PREFIX) and line.endswith(READY_SUFFIX)):
            self.stop()
            raise ResourceError(
                f"the simulator did not start; it said {line!r}", mend="see what it wrote on standard error"
            )
        self._url = line.removeprefix(READY_PREFIX).removesuffix(READY_SUFFIX)
        return self

    def stop(self) -> int | None:
        """End the process and return its exit status; ``None`` when it was not running."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.terminate()
        try:
            status = child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def info(self) -> dict[str, Json]:
        """Return what ``GET /sim/info`` answers."""
        return self._ask("GET", "/sim/info")

    def truth(self) -> dict[str, Json]:
        """Return what ``GET /sim/truth`` answers: the simulator's own latencies since the last reset."""
        return self._ask("GET", "/sim/truth")

    def reset(self) -> None:
        """Forget what was measured and start the seeded sequences anew."""
        self._ask("POST", "/sim/reset")

    def flags(self, **changes: Unpack[SimFlags]) -> dict[str, Json]:
        """Change options while the simulator runs and return them all. Raises UpstreamError when refused."""
        return self._ask("POST", "/sim/flags", msgspec.json.encode(changes))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Json]:
        self._running()
        place = urlsplit(self._url)
        conn = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_ASK_TIMEOUT_S)
        try:
            conn.request(method, path, body=body)
            answer = conn.getresponse()
            data = answer.read()
        finally:
            conn.close()
        if answer.status != _OK:
            raise UpstreamError(
                f"the simulator refused {method} {path}: {data.decode(errors='replace')}",
                status=answer.status,
            )
        return cast("dict[str, Json]", msgspec.json.decode(data))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise ResourceError("the simulator does not run", mend="use it as a context manager")
        return self._child

"""A model server beside us: ``weir runtime`` in a process of its own, started, watched and ended."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tokenweir.core.errors import MissingExtraError, ResourceError

_START_S: Final = 120.0
_POLL_S: Final = 0.02
_STOP_S: Final = 40.0
_TAIL_BYTES: Final = 4096
_MEND: Final = "pip install 'tokenweir[runtime]' (Linux, or macOS on Apple silicon)"


def can_serve() -> bool:
    """Whether a real model can be served here: MLX is installed."""
    return importlib.util.find_spec("mlx_lm") is not None


class RuntimeProcess:
    """``weir runtime`` on a model directory, on a free local port, for as long as the ``with`` block lasts.

    It ends with this process, too, however that ends.

    ``url`` is valid inside the block, ``model`` is the name to ask for. Its log goes to ``log``. More options of the
    command may be given as they are typed, and in ``flags`` those that stand before its name.

    Raises:
        MissingExtraError: on entry: MLX is not installed.
        ResourceError: on entry: the server ended or did not answer in time; the message has its last words.
    """

    def __init__(self, model: Path, log: Path, *options: str, flags: Sequence[str] = ()) -> None:
        self.model = model.name
        self.url = ""
        self._command = [
            sys.executable,
            "-m",
            "tokenweir",
            *flags,
            "runtime",
            str(model),
            "--port",
            "0",
            *options,
        ]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process. Raises ResourceError outside the block."""
        if self._process is None:
            raise ResourceError("the model server does not run", mend="enter its block first")
        return self._process.pid

    def __enter__(self) -> Self:
        if not can_serve():
            raise MissingExtraError("no real model can be served: MLX is not installed", mend=_MEND)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and wait for it. Does nothing when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        # Closes the pipe only afterwards: its end would be a second call to stop, which does not wait for answers.
        with process:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self) -> None:
        with tempfile.TemporaryDirectory(prefix="weir-runtime-") as folder:
            ready = Path(folder) / "ready"
            self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._process = process = subprocess.Popen(
                    [*self._command, "--tethered", "--ready-file", str(ready)],
                    # Nothing is written to it: the system closes it with this process.
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Out of the terminal's foreground group: Ctrl-C is ours to handle, in order.
                    process_group=0,
                )
            deadline = time.monotonic() + _START_S
            while not self.url:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ResourceError(
                        f"weir runtime did not start: {self._last_words()}",
                        mend=f"see {str(self._log)!r} for its log",
                    )
                if ready.exists():
                    text = ready.read_text(encoding="utf-8")
                    self.url = text.strip() if text.endswith("\n") else ""
                time.sleep(_POLL_S)

    def _last_words(self) -> str:
        tail = self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace") if self._log.exists() else ""
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return repr((lines or ["it said nothing"])[-1])

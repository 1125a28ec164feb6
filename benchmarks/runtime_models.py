"""The model that the runtime's benchmarks run: a Llama of 8 million parameters in fp32, and the BLAS to run it with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.factories.tiny_model import ModelShape, build_tiny_model

CACHE = Path(__file__).parent / "cache"
SHAPE = ModelShape(
    vocabulary=4096, hidden=256, layers=6, heads=4, kv_heads=2, feed_forward=1024, context=4096
)
SMALLER = ModelShape(
    vocabulary=2048, hidden=256, layers=2, heads=4, kv_heads=2, feed_forward=768, context=4096
)

_ROOT = Path(__file__).parent.parent
_BLAS = (
    Path("/usr/lib/x86_64-linux-gnu/libopenblas.so.0"),
    Path("/usr/lib/aarch64-linux-gnu/libopenblas.so.0"),
    Path("/usr/lib64/libopenblas.so.0"),
)


def eight_million() -> Path:
    """Return the model's directory, made at the first call: its tokenizer is trained on this repository's texts."""
    return _made("runtime-8m", SHAPE)


def ten_megabytes() -> Path:
    """Return the directory of a smaller model, whose weights take 10 MB."""
    return _made("runtime-10mb", SMALLER)


def _made(name: str, shape: ModelShape) -> Path:
    directory = CACHE / name
    if not (directory / "config.json").is_file():
        files = [*sorted((_ROOT / "docs").glob("*.md")), *sorted((_ROOT / "src").rglob("*.py"))]
        build_tiny_model(directory, [file.read_text(encoding="utf-8") for file in files], shape=shape)
    return directory


def fast_blas() -> Mapping[str, str]:
    """Return the environment that loads OpenBLAS into a process; empty where there is none to load."""
    found = next((path for path in _BLAS if path.exists()), None)
    return {"LD_PRELOAD": str(found)} if found is not None else {}

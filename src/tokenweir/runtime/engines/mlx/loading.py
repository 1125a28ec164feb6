"""Weights from a directory to the device: whole, in the type this device computes in, quantised if asked.

Nothing is downloaded and no code of the model's own is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, Literal

import mlx.core as mx
import msgspec

from tokenweir.core.errors import InputError
from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.arrays import evaluate, named_arrays
from tokenweir.runtime.engines.mlx.framework import Model
from tokenweir.runtime.models.artifacts import ArtifactCache

_GROUPS: Final = (64, 32)
_HALVES: Final = (mx.float16, mx.bfloat16)
_AGAIN: Final = "copy or download the model again"
_SHOWN: Final = 300


class Loaded(msgspec.Struct, frozen=True):
    """A model whose weights are on the device, its configuration, and the bytes its weights take."""

    model: Model
    config: dict[str, Any]
    weights_bytes: int


def load(
    directory: Path,
    *,
    revision: str,
    weight_bits: Literal[4, 8] | None = None,
    artifacts: ArtifactCache | None = None,
) -> Loaded:
    """Load the model in ``directory``.

    With ``weight_bits`` the weights are quantised, and kept in ``artifacts`` under ``revision``, so that the
    next time they are only read.

    Raises:
        InputError: the files are not a model that can be run; the message names them.
    """
    cache = artifacts if weight_bits is not None else None
    name = f"{revision}-{weight_bits}"
    kept = cache.get("weights", name) if cache is not None else None
    if kept is not None and (kept / "config.json").is_file():
        return on_device(*_read(kept), kept)
    model, config = _read(directory)
    if weight_bits is None:
        return on_device(model, config, directory)
    _widen(model)
    model, config = _quantise(model, config, weight_bits, directory)
    loaded = on_device(model, config, directory)
    if cache is not None:
        _keep(loaded, cache, name)
    return loaded


def weights_bytes(model: Model) -> int:
    """Return what a model's weights take."""
    return sum(array.nbytes for _, array in named_arrays(model.parameters()))


def _read(directory: Path) -> tuple[Model, dict[str, Any]]:
    with named(directory):
        return framework.load_model(directory)


def on_device(model: Model, config: dict[str, Any], directory: Path) -> Loaded:
    """Compute a model's weights in the type this device computes in.

    Raises:
        InputError: the files in ``directory`` cannot be read.
    """
    _widen(model)
    with named(directory):
        # Layers are made with random weights, which nobody computes: the state of the random numbers would remember
        # each as work to be done.
        evaluate(model.parameters(), mx.random.state)
    # Read lazily, the files' own types may have been in memory beside those computed from them.
    mx.clear_cache()
    return Loaded(model, config, weights_bytes(model))


def _widen(model: Model) -> None:
    """Make 16-bit floats 32-bit ones where the device is a CPU, which computes in these."""
    if mx.default_device() != mx.Device(mx.cpu):
        return
    if any(array.dtype in _HALVES for _, array in named_arrays(model.parameters())):
        model.set_dtype(mx.float32)


def _quantise(
    model: Model, config: dict[str, Any], bits: Literal[4, 8], directory: Path
) -> tuple[Model, dict[str, Any]]:
    if "quantization" in config or "quantization_config" in config:
        raise InputError(
            f"the weights in {directory} are quantised already, and weight_bits is {bits}",
            mend="leave weight_bits out, or give the directory of the weights as they were trained",
        )
    widths = {
        array.shape[-1]
        for name, array in named_arrays(model.parameters())
        if name.endswith(".weight") and array.ndim > 1
    }
    group = next((size for size in _GROUPS if any(width % size == 0 for width in widths)), None)
    if group is None:
        raise InputError(
            f"no weights in {directory} have rows of a multiple of {_GROUPS[-1]}, so they cannot be quantised",
            mend="leave weight_bits out",
        )
    # It says on standard output how many bits it came to.
    with contextlib.redirect_stdout(None):
        return framework.quantise_model(model, config, bits=bits, group=group)


def _keep(loaded: Loaded, cache: ArtifactCache, name: str) -> None:
    """Keep quantised weights on disk. Where that fails, the model is loaded all the same."""

    def write(directory: Path) -> None:
        directory.mkdir()
        framework.save_weights(directory, loaded.model)
        framework.save_config(directory / "config.json", dict(loaded.config))

    with contextlib.suppress(OSError, RuntimeError):
        cache.put("weights", name, write)


@contextlib.contextmanager
def named(directory: Path) -> Generator[None]:
    """Turn what MLX raises for files it cannot use into an error that names them."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{directory} lacks a file: {error}",
            mend="give a directory with config.json and model*.safetensors",
        ) from error
    except ValueError as error:
        raise _unusable(directory, str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{directory / 'config.json'} does not describe a model that can be built: "
            f"{type(error).__name__}: {_short(str(error))}",
            mend="take the model's original config.json",
        ) from error
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"the weights in {directory} cannot be read: {_short(str(error))}", mend=_AGAIN
        ) from error


def _unusable(directory: Path, why: str) -> InputError:
    if "not supported" in why:
        return InputError(
            f"{directory / 'config.json'}: {_short(why)}", mend="update mlx-lm, or take a known architecture"
        )
    if "Missing" in why or "Received" in why or "shape" in why:
        return InputError(
            f"the weights in {directory} (model*.safetensors) do not fit its config.json: {_short(why)}",
            mend=_AGAIN,
        )
    return InputError(f"the model in {directory} cannot be built: {_short(why)}", mend=_AGAIN)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"

"""What a model directory holds, learnt from its files alone: no framework, nothing loaded, nothing downloaded.

A model directory has ``config.json``, weights as ``model*.safetensors`` (with an index where they are sharded) and
``tokenizer.json``; a directory for the simulating engine has a ``config.json`` with ``"architecture": "sim"``.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from tokenweir.core.errors import InputError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import Capability, ModelCard
from tokenweir.runtime.models import architectures, configuration, tokenizers
from tokenweir.runtime.models.configuration import Configuration, read_json
from tokenweir.runtime.models.drafts import check_draft
from tokenweir.runtime.models.revision import revision
from tokenweir.runtime.models.safetensors import FLOATS, Tensor, read_header

_INDEX: Final = "model.safetensors.index.json"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_GROUP: Final = 64
"""Weights per scale when weights are quantised at load, MLX's own default."""

_SIM_DEFAULTS: Final = {
    "weights_bytes": 0,
    "kv_bytes_per_token": 1024,
    "context_tokens": 8192,
    "vocabulary": 512,
}
_SIM_CAPABILITIES: Final[tuple[Capability, ...]] = (
    "chat",
    "completion",
    "embedding",
    "tools",
    "guidance",
    "logprobs",
    "seed",
)


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """How weights lie in memory: ``float_bytes`` for each 16-bit float of the files; 4-byte floats stay."""

    float_bytes: Literal[2, 4]


def machine_precision() -> Precision:
    """Return what this machine's engine does: a CPU computes in 32 bits, Metal in the 16 that are stored."""
    metal = sys.platform == "darwin" and platform.machine() == "arm64"
    return Precision(float_bytes=2 if metal else 4)


def read_card(
    path: Path,
    name: str,
    *,
    weight_bits: Literal[4, 8] | None = None,
    context_tokens: int | None = None,
    draft: Path | None = None,
    precision: Precision | None = None,
) -> ModelCard:
    """Return what is known of the model in the directory ``path`` before it is loaded.

    ``weight_bits``, ``context_tokens`` and ``draft`` are as in ``LoadSpec``. ``precision`` is this machine's unless
    given. The sizes are estimates from shapes, upper bounds where layers keep a window; the engine confirms them.

    Raises:
        InputError: the directory is missing, foreign, incomplete or not of a known architecture, an option does
            not suit it, or the draft model does not fit it. The message says what to do.
    """
    directory = _directory(path)
    whole = _read_config(directory)
    if whole.get("architecture") == architectures.SIM:
        return _sim_card(directory, name, whole, context_tokens)
    config = Configuration(directory / configuration.FILE, whole)
    _check_architecture(directory, config)
    files = weight_files(directory)
    tokenizers.require_tokenizer(directory)
    if weight_bits is not None and config.quantised_bits is not None:
        raise InputError(
            f"the weights in {directory} are quantised already, and weight_bits is {weight_bits}",
            mend="leave weight_bits out, or give the directory of the weights as they were trained",
        )
    tensors = [tensor for file in files for tensor in read_header(file).items()]
    kept = precision or machine_precision()
    beside = None
    if draft is not None:
        check_draft(directory, _directory(draft))
        beside = read_card(draft, name, precision=kept)
    return ModelCard(
        name=name,
        path=str(directory),
        revision=revision(directory, files),
        architecture=config.model_type,
        context_tokens=_context(directory, config, context_tokens),
        vocabulary=config.vocabulary or len(tokenizers.read_vocabulary(directory).tokens),
        weights_bytes=weights_bytes(tensors, kept, weight_bits) + (beside.weights_bytes if beside else 0),
        kv_bytes_per_token=_kv_bytes(config, tensors, kept) + (beside.kv_bytes_per_token if beside else 0),
        weight_bits=weight_bits if weight_bits is not None else config.quantised_bits or None,
        draft=str(_directory(draft)) if draft is not None else None,
        capabilities=_capabilities(directory, config, drafted=draft is not None),
    )


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that make up the model, in order of their names.

    Raises:
        InputError: there are none, or the index names files that are not there.
    """
    index = directory / _INDEX
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InputError(f"{index} has no weight_map", mend="copy or download the file again")
        shards = sorted({directory / str(file) for file in names.values()})
        missing = [file.name for file in shards if not file.is_file()]
        if missing:
            raise InputError(
                f"{index} names {missing[0]}, which is not there ({len(missing)} of {len(shards)} files are missing)",
                mend="copy or download the missing files",
            )
        return shards
    found = sorted(directory.glob("model*.safetensors"))
    if not found:
        raise _foreign(directory)
    return found


def weights_bytes(
    tensors: Iterable[tuple[str, Tensor]], precision: Precision, weight_bits: Literal[4, 8] | None = None
) -> int:
    """Return the bytes that tensors take in memory.

    Formula: 16-bit floats take ``float_bytes`` each, everything else what it takes on disk. With ``weight_bits``, a
    matrix whose rows are a multiple of 64 takes ``weight_bits`` per number and a scale and a bias per 64 numbers.
    """
    total = 0
    for name, tensor in tensors:
        width = precision.float_bytes if tensor.dtype in {"F16", "BF16"} else 4
        if tensor.dtype not in FLOATS:
            total += tensor.stored_bytes
        elif weight_bits is not None and _is_matrix(name, tensor):
            total += tensor.values * weight_bits // 8 + tensor.values // _GROUP * 2 * width
        else:
            total += tensor.values * width
    return total


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and len(tensor.shape) in {2, 3} and tensor.shape[-1] % _GROUP == 0


def _kv_bytes(config: Configuration, tensors: Iterable[tuple[str, Tensor]], precision: Precision) -> int:
    """Return the cache's bytes per token: it holds what the model computes in, the type of most of its floats."""
    if config.model_type in architectures.ENCODERS:
        return 0
    floats: dict[str, int] = {}
    for _, tensor in tensors:
        if tensor.dtype in FLOATS:
            floats[tensor.dtype] = floats.get(tensor.dtype, 0) + tensor.values
    dtype = max(floats, key=lambda name: floats[name], default="F32")
    return config.kv_values_per_token() * (4 if dtype == "F32" else precision.float_bytes)


def _directory(path: Path) -> Path:
    expanded = path.expanduser()
    if expanded.is_dir():
        return expanded.resolve()
    if expanded.suffix == ".gguf":
        raise _gguf(expanded)
    if expanded.exists():
        raise InputError(f"the model {str(path)!r} is a file", mend="give the directory that holds it")
    if _HUB_ID.fullmatch(str(path)) and not path.parent.exists():
        raise InputError(
            f"{str(path)!r} is no directory here, and nothing is downloaded",
            mend=f"get it first, such as with `hf download {path} --local-dir {path.name}`, and give that directory",
        )
    raise InputError(f"the model directory {str(path)!r} does not exist", mend="check the path")


def _read_config(directory: Path) -> dict[str, Json]:
    path = directory / configuration.FILE
    if path.is_file():
        return read_json(path)
    if (directory / "adapter_config.json").is_file():
        raise InputError(
            f"{directory} holds an adapter, not a model",
            mend="merge it into its base model first, and give the directory of the result",
        )
    raise _foreign(directory, missing=configuration.FILE)


def _foreign(directory: Path, *, missing: str = "model*.safetensors") -> InputError:
    """Return the error for a directory without what a model needs, by what it has instead."""
    gguf = next(iter(sorted(directory.glob("*.gguf"))), None)
    if gguf is not None:
        return _gguf(gguf)
    torch = next(
        (file for ending in ("*.bin", "*.pt", "*.pth") for file in sorted(directory.glob(ending))), None
    )
    if torch is not None:
        return InputError(
            f"{directory} holds PyTorch weights ({torch.name}), which can run code when read",
            mend="convert them to safetensors where you trust them: model.save_pretrained(DIR), "
            "or `mlx_lm.convert --hf-path DIR --mlx-path NEW`",
        )
    if any(directory.glob("*.safetensors")):
        return InputError(
            f"{directory} has no {missing}", mend="name the weights as they were: model*.safetensors"
        )
    return InputError(
        f"{directory} is no model directory: it has no {missing}",
        mend="give a directory with config.json, model*.safetensors and tokenizer.json",
    )


def _gguf(path: Path) -> InputError:
    return InputError(
        f"{path} is a GGUF file, the format of llama.cpp",
        mend="give the directory of the same model in safetensors, or serve this one with llama.cpp's server",
    )


def _check_architecture(directory: Path, config: Configuration) -> None:
    file = directory / configuration.FILE
    if not config.model_type:
        raise InputError(f"{file} states no model_type", mend="take the model's original config.json")
    if config.get("model_file") is not None:
        raise InputError(
            f"{file} asks for code of its own ({config.get('model_file')!r}), and no foreign code is run",
            mend="take a model of a known architecture",
        )
    if architectures.is_supported(config.model_type) is False:
        raise InputError(
            f"the architecture {config.model_type!r} of {directory} is unknown to the installed mlx-lm and mlx-vlm",
            mend="update them, or take a model of a known architecture",
        )


def _context(directory: Path, config: Configuration, asked: int | None) -> int:
    own = config.context_tokens()
    if asked is None:
        if own is None:
            raise InputError(
                f"{directory / configuration.FILE} states no context length", mend="state context_tokens"
            )
        return own
    if asked < 2 or (own is not None and asked > own):  # noqa: PLR2004 - a token asked and one answered
        raise InputError(
            f"context_tokens {asked} of {directory} is not within 2 and the model's own {own}",
            mend="state a number within, or leave it out",
        )
    return asked


def _capabilities(directory: Path, config: Configuration, *, drafted: bool) -> tuple[Capability, ...]:
    if config.model_type in architectures.ENCODERS:
        return ("embedding",)
    template = tokenizers.chat_template(directory)
    found: list[Capability] = ["completion", "guidance", "logprobs", "seed", "quantised_kv"]
    if template is not None:
        found.insert(0, "chat")
        if "tools" in template:
            found.append("tools")
    if config.sees:
        found.append("vision")
    if drafted:
        found.append("draft")
    return tuple(found)


def _sim_card(directory: Path, name: str, whole: dict[str, Json], context_tokens: int | None) -> ModelCard:
    numbers: dict[str, int] = {}
    for key, default in _SIM_DEFAULTS.items():
        value = whole.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(
                f"{directory / configuration.FILE} has {key} {value!r}", mend="write a whole number"
            )
        numbers[key] = value
    stated = whole.get("capabilities", list(_SIM_CAPABILITIES))
    try:
        capabilities = msgspec.convert(stated, tuple[Capability, ...])
    except msgspec.ValidationError as error:
        raise InputError(
            f"{directory / configuration.FILE} has capabilities {stated!r}: {error}",
            mend=f"list some of {', '.join(_SIM_CAPABILITIES)}",
        ) from error
    own = numbers["context_tokens"]
    if context_tokens is not None and not 2 <= context_tokens <= own:  # noqa: PLR2004
        raise InputError(
            f"context_tokens {context_tokens} of {directory} is not within 2 and the model's own {own}",
            mend="state a number within, or leave it out",
        )
    return ModelCard(
        name=name,
        path=str(directory),
        revision=revision(directory, ()),
        architecture=architectures.SIM,
        context_tokens=context_tokens or own,
        vocabulary=numbers["vocabulary"],
        weights_bytes=numbers["weights_bytes"],
        kv_bytes_per_token=numbers["kv_bytes_per_token"],
        capabilities=capabilities,
    )

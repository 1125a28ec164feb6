from __future__ import annotations

import json
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.contract.mlx.conftest import Load
from tests.contract.mlx.decoding import GREEDY, asked, decoder_of, one, run
from tests.factories.language_models import edit_json
from tests.factories.reference_llama import ReferenceLlama, read_safetensors
from tests.factories.tiny_model import Floats, write_safetensors

from tokenweir.core.errors import ConfigError, InputError, NoMemoryError, WeirError
from tokenweir.ports.inference import Decoding, InferenceEngine, LoadSpec
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.models.manifest import read_card

PROMPT = (9, 80, 31, 7)


@pytest.fixture
def copy(models: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(models["target"], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def no_network() -> Iterator[None]:
    """Whoever opens a socket fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something dialled out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


def test_nothing_dials_out(load: Load, models: dict[str, Path], no_network: None) -> None:
    assert one(decoder_of(load(models["tools"])), PROMPT).finish


def test_what_was_read_from_files_is_confirmed_by_what_was_loaded(
    load: Load, models: dict[str, Path]
) -> None:
    before = read_card(models["target"], "target")
    after = load(models["target"]).card
    assert after.weights_bytes == before.weights_bytes
    assert after.kv_bytes_per_token == before.kv_bytes_per_token == 2 * 2 * 32 * 4
    assert after.vocabulary == before.vocabulary
    assert {"chat", "completion", "embedding", "guidance", "logprobs", "seed", "quantised_kv"} == set(
        after.capabilities
    )
    assert "tools" in load(models["tools"]).card.capabilities


def test_halves_become_floats_where_a_cpu_computes(load: Load, copy: Path) -> None:
    tensors = read_safetensors(copy / "model.safetensors")
    _write_bfloat16(copy / "model.safetensors", tensors)
    rounded = {name: _round(tensor) for name, tensor in tensors.items()}
    twin = copy.parent / "rounded"
    shutil.copytree(copy, twin)
    write_safetensors(twin / "model.safetensors", rounded)
    model = load(copy)
    assert model.card.weights_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert one(decoder_of(model), PROMPT).tokens == ReferenceLlama(twin).greedy(PROMPT, GREEDY.max_tokens)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_quantised_at_load_and_kept(copy: Path, tmp_path: Path, bits: int) -> None:
    options = EngineOptions(artifacts=str(tmp_path / "artifacts"))
    card = read_card(copy, "m", weight_bits=4 if bits == 4 else 8)
    spec = LoadSpec(name="m", path=str(copy), weight_bits=4 if bits == 4 else 8)
    whole = read_card(copy, "m").weights_bytes
    engine = registry.create("mlx", options)
    first = engine.load(spec, card)
    assert first.card.weights_bytes < whole * (0.35 if bits == 4 else 0.6)
    tokens = one(decoder_of(first), PROMPT).tokens
    first.close()
    (kept,) = (tmp_path / "artifacts" / "weights").iterdir()
    assert kept.name == f"{card.revision}-{bits}"
    # The second time the originals are not even read.
    original = copy / "model.safetensors"
    original.write_bytes(original.read_bytes()[:100])
    second = engine.load(spec, card)
    assert one(decoder_of(second), PROMPT).tokens == tokens
    assert second.card.weights_bytes == first.card.weights_bytes
    second.close()


def test_weights_beyond_the_bound_of_what_is_kept_are_not_kept(copy: Path, tmp_path: Path) -> None:
    options = EngineOptions(artifacts=str(tmp_path / "artifacts"), artifact_bytes=1000)
    spec = LoadSpec(name="m", path=str(copy), weight_bits=4)
    model = registry.create("mlx", options).load(spec, read_card(copy, "m", weight_bits=4))
    model.close()
    assert not list((tmp_path / "artifacts").glob("weights/*"))


def test_eight_bits_write_nearly_what_the_whole_weights_write(load: Load, models: dict[str, Path]) -> None:
    reference = ReferenceLlama(models["target"])
    model = load(models["target"], weight_bits=8)
    answer = one(decoder_of(model), PROMPT, Decoding(max_tokens=8, temperature=0.0, logprobs=0))
    rows = reference.logprobs([*PROMPT, *answer.tokens])[len(PROMPT) - 1 :]
    told = [event.logprob or 0.0 for event in answer.drawn]
    meant = [row[token] for row, token in zip(rows, answer.tokens, strict=False)]
    assert np.abs(np.array(told) - np.array(meant)).max() < 0.5


def test_a_quantised_cache_writes_nearly_the_same(load: Load, models: dict[str, Path]) -> None:
    decoder = decoder_of(load(models["target"]))
    how = Decoding(max_tokens=8, temperature=0.0, logprobs=0)
    whole = one(decoder, tuple(range(4, 200)), how)
    eight = one(decoder, tuple(range(4, 200)), Decoding(max_tokens=8, temperature=0.0, logprobs=0, kv_bits=8))
    assert whole.drawn[0].logprob == pytest.approx(eight.drawn[0].logprob, abs=0.3)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "model.safetensors|cannot be read"),
        ("foreign", "model.safetensors|cannot be read"),
        ("tensor_missing", "do not fit its config.json.*model.norm.weight"),
        ("tensor_wrong", "do not fit its config.json"),
        ("config_lacks", "config.json"),
        ("unknown", "config.json|unknown"),
        ("tokenizer", "tokenizer.json"),
        ("template", "chat template"),
        ("tool_format", "tool call format 'dancing'"),
        ("own_code", "code"),
    ],
)
def test_files_that_are_no_model_are_refused_by_name(
    engine: InferenceEngine, models: dict[str, Path], copy: Path, damage: str, said: str
) -> None:
    card = read_card(models["target"], "m")
    _damage(copy, damage)
    spec = LoadSpec(name="m", path=str(copy))
    for attempt in (0, 1):
        with pytest.raises(WeirError, match=said) as caught:
            # The card is that of the whole files: also what slips past its reader is refused.
            engine.load(
                spec, read_card(copy, "m") if attempt else msgspec.structs.replace(card, path=str(copy))
            )
        assert isinstance(caught.value, InputError)
        assert caught.value.mend
        assert str(copy) in caught.value.message or "tokenizer_config.json" in caught.value.message


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(models: dict[str, Path]) -> None:
    engine = registry.create("mlx", EngineOptions(limit_bytes=200_000))
    try:
        with pytest.raises(NoMemoryError, match=r"take \d+ bytes, and of 200000 bytes") as caught:
            engine.load(LoadSpec(name="m", path=str(models["target"])), read_card(models["target"], "m"))
        assert "weight_bits" in caught.value.mend
    finally:
        registry.create("mlx", EngineOptions(limit_bytes=1 << 32))


def test_an_option_that_the_engine_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="colour"):
        registry.create("mlx", EngineOptions(options={"colour": "blue"}))


@pytest.mark.timeout(600)
def test_memory_is_flat_over_fifty_rounds_of_loading_and_unloading(
    engine: InferenceEngine, models: dict[str, Path]
) -> None:
    card = read_card(models["target"], "m")
    spec = LoadSpec(name="m", path=str(models["target"]))
    resident: list[int] = []
    active: list[int] = []
    for _ in range(50):
        model = engine.load(spec, card)
        run(decoder_of(model), [asked(1, PROMPT, Decoding(max_tokens=3, temperature=0.0))])
        model.close()
        del model
        active.append(engine.memory().active_bytes)
        resident.append(_resident_bytes())
    assert max(active[5:]) - min(active[5:]) < 4096
    assert engine.memory().cached_bytes == 0
    assert max(resident[25:]) - max(resident[5:25]) < card.weights_bytes


def _damage(directory: Path, damage: str) -> None:
    weights = directory / "model.safetensors"
    match damage:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "foreign":
            weights.write_bytes(b"PK\x03\x04" * 64)
        case "tensor_missing":
            write_safetensors(
                weights, {k: v for k, v in read_safetensors(weights).items() if k != "model.norm.weight"}
            )
        case "tensor_wrong":
            tensors = read_safetensors(weights)
            write_safetensors(weights, tensors | {"model.norm.weight": np.ones(7, dtype=np.float32)})
        case "config_lacks":
            edit_json(directory / "config.json", num_attention_heads=None)
        case "unknown":
            edit_json(directory / "config.json", model_type="abacus")
        case "tokenizer":
            (directory / "tokenizer.json").write_text('{"version": "1.0"}')
        case "template":
            edit_json(directory / "tokenizer_config.json", chat_template="{% for %}")
        case "tool_format":
            edit_json(directory / "tokenizer_config.json", tool_parser_type="dancing")
        case _:
            (directory / "own.py").write_text("raise SystemExit")
            edit_json(directory / "config.json", model_file="own.py")


def _round(tensor: Floats) -> Floats:
    return (_halves(tensor).astype(np.uint32) << 16).view(np.float32)


def _halves(tensor: Floats) -> NDArray[np.uint16]:
    return (np.ascontiguousarray(tensor, dtype="<f4").view(np.uint32) >> 16).astype("<u2")


def _write_bfloat16(path: Path, tensors: dict[str, Floats]) -> None:
    header: dict[str, object] = {}
    offset = 0
    parts: list[bytes] = []
    for name, tensor in tensors.items():
        raw = _halves(tensor).tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
        parts.append(raw)
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(parts))


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    pytest.skip("needs /proc")

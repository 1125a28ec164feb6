from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from tests.factories.tiny_model import ModelShape, build_tiny_model, write_safetensors

from tokenweir.core.errors import InputError
from tokenweir.core.requests import Json
from tokenweir.runtime.models.manifest import Precision, read_card, weights_bytes
from tokenweir.runtime.models.revision import hashes_path
from tokenweir.runtime.models.safetensors import Tensor

TEXTS = ("the weir measures the river", "the river flows over the weir and on")
CPU = Precision(float_bytes=4)
METAL = Precision(float_bytes=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(
        tmp_path_factory.mktemp("built") / "tiny",
        TEXTS,
        shape=ModelShape(
            vocabulary=300, hidden=64, layers=3, heads=4, kv_heads=2, feed_forward=64, context=256
        ),
    )


@pytest.fixture
def model(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(built, tmp_path / "tiny"))


def change(model: Path, **values: Json) -> None:
    rewrite(model / "config.json", values)


def rewrite(path: Path, values: dict[str, Json]) -> None:
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_card_says_what_the_files_hold(model: Path) -> None:
    card = read_card(model, "tiny")
    stored = sum(tensor[0] * (tensor[1] if len(tensor) > 1 else 1) * 4 for tensor in shapes(model))
    assert card.name == "tiny"
    assert card.path == str(model)
    assert card.architecture == "llama"
    assert card.context_tokens == 256
    assert card.vocabulary == json.loads((model / "config.json").read_text())["vocab_size"]
    assert card.weights_bytes == stored
    assert card.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4
    assert card.draft is None
    assert "chat" in card.capabilities
    assert "vision" not in card.capabilities


def shapes(model: Path) -> list[list[int]]:
    raw = (model / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return [entry["shape"] for name, entry in header.items() if name != "__metadata__"]


def test_the_revision_is_what_sha256sum_says(model: Path) -> None:
    shell = "sha256sum config.json model*.safetensors | sha256sum"
    said = subprocess.run(["sh", "-c", shell], cwd=model, capture_output=True, text=True, check=True).stdout
    assert read_card(model, "a").revision == said.split()[0]
    change(model, rope_theta=20000.0)
    assert read_card(model, "a").revision != said.split()[0]


def test_a_large_file_is_hashed_once(model: Path) -> None:
    cache = hashes_path()
    weights = model / "model.safetensors"
    for file in (weights, model / "config.json"):
        old(file)
    first = read_card(model, "a").revision
    known = json.loads(cache.read_text())
    assert known[str(weights)]["hash"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    known[str(weights)]["hash"] = "0" * 64
    cache.write_text(json.dumps(known))
    assert read_card(model, "a").revision != first, "the kept hash was not used"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert read_card(model, "a").revision not in {first, ""}
    cache.write_text("not json")
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert read_card(model, "a").revision == first


def old(file: Path) -> None:
    """Give a file a time of change long past, as a model's files have."""
    os.utime(file, ns=(10**18, 10**18))


def test_a_file_changed_just_now_is_not_remembered(model: Path) -> None:
    read_card(model, "a")
    assert not hashes_path().exists()


def tensor(dtype: str, *shape: int) -> Tensor:
    width = {"BF16": 2, "F16": 2, "F32": 4, "U32": 4}[dtype]
    return Tensor(dtype=dtype, shape=shape, data_offsets=(0, int(np.prod(shape)) * width))


@pytest.mark.parametrize(
    ("name", "held", "precision", "bits", "expected"),
    [
        ("a.weight", tensor("BF16", 8, 64), CPU, None, 8 * 64 * 4),
        ("a.weight", tensor("BF16", 8, 64), METAL, None, 8 * 64 * 2),
        ("a.weight", tensor("F32", 8, 64), METAL, None, 8 * 64 * 4),
        ("a.weight", tensor("U32", 8, 64), CPU, None, 8 * 64 * 4),
        ("a.scales", tensor("BF16", 8, 1), CPU, None, 8 * 4),
        ("a.weight", tensor("BF16", 8, 64), METAL, 4, 8 * 64 // 2 + 8 * 2 * 2),
        ("a.weight", tensor("BF16", 8, 64), CPU, 8, 8 * 64 + 8 * 2 * 4),
        ("a.weight", tensor("BF16", 8, 63), CPU, 8, 8 * 63 * 4),
        ("norm.weight", tensor("BF16", 64), CPU, 8, 64 * 4),
    ],
)
def test_weights_in_memory_follow_type_precision_and_bits(
    name: str, held: Tensor, precision: Precision, bits: Literal[4, 8] | None, expected: int
) -> None:
    assert weights_bytes([(name, held)], precision, bits) == expected


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, 256),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 1024),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 256),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, 1024),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, 256),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, 256),
        ({"max_position_embeddings": None, "n_positions": 99}, 99),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
    ],
)
def test_the_context_is_the_extended_limit(model: Path, config: dict[str, Json], tokens: int) -> None:
    change(model, **config)
    assert read_card(model, "a").context_tokens == tokens


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ({}, 2 * 3 * 2 * 16),
        ({"num_key_value_heads": None}, 2 * 3 * 4 * 16),
        ({"head_dim": 32}, 2 * 3 * 2 * 32),
        ({"head_dim": None}, 2 * 3 * 2 * 16),
        ({"num_key_value_heads": [1, 2, 4]}, 2 * 7 * 16),
        ({"multi_query": True}, 2 * 3 * 16),
        ({"layer_types": ["linear_attention", "full_attention", "sliding_attention"]}, 2 * 2 * 2 * 16),
        ({"full_attention_interval": 2}, 2 * 2 * 2 * 16),
        ({"kv_lora_rank": 10, "qk_rope_head_dim": 6}, 3 * 16),
    ],
)
def test_the_cache_of_a_token_follows_the_layers(model: Path, config: dict[str, Json], values: int) -> None:
    change(model, **config)
    assert read_card(model, "a").kv_bytes_per_token == values * 4


def test_options_change_the_card(model: Path) -> None:
    whole = read_card(model, "a")
    small = read_card(model, "a", weight_bits=4, context_tokens=100)
    assert small.weights_bytes < whole.weights_bytes / 4
    assert small.context_tokens == 100
    assert small.weight_bits == 4
    assert small.revision == whole.revision


@pytest.mark.parametrize("tokens", [1, 257])
def test_a_context_that_the_model_does_not_have_is_refused(model: Path, tokens: int) -> None:
    with pytest.raises(InputError, match=rf"context_tokens {tokens}.*256"):
        read_card(model, "a", context_tokens=tokens)


def test_capabilities_come_from_the_files(model: Path) -> None:
    rewrite(model / "tokenizer_config.json", {"chat_template": "{% if tools %}{{ tools }}{% endif %}"})
    change(model, vision_config={"depth": 2})
    assert {"chat", "tools", "vision"} <= set(read_card(model, "a").capabilities)
    rewrite(model / "tokenizer_config.json", {"chat_template": None})
    assert "chat" not in read_card(model, "a").capabilities
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat" in read_card(model, "a").capabilities
    change(model, model_type="bert")
    assert read_card(model, "a").capabilities == ("embedding",)


def test_a_sharded_model_is_read_through_its_index(model: Path) -> None:
    whole = read_card(model, "a")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    write_safetensors(model / "model-00002-of-00002.safetensors", {"extra": np.ones(10, dtype=np.float32)})
    index = {
        "weight_map": {"x": "model-00001-of-00002.safetensors", "extra": "model-00002-of-00002.safetensors"}
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_card(model, "a").weights_bytes == whole.weights_bytes + 40
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"names model-00002-of-00002.safetensors.*1 of 2"):
        read_card(model, "a")


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def only_torch(model: Path) -> None:
    remove_weights(model)
    (model / "pytorch_model.bin").write_bytes(b"PK")


def only_gguf(model: Path) -> None:
    remove_weights(model)
    (model / "m.gguf").write_bytes(b"GGUF")


def only_adapter(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text("{}")


def cut_weights(model: Path) -> None:
    raw = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(raw[:-100])


def cut_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:50])


def no_safetensors(model: Path) -> None:
    (model / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"no json!")


def pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 1000\n")


def no_json(model: Path) -> None:
    (model / "config.json").write_text("{'single': quotes}")


def a_list(model: Path) -> None:
    (model / "config.json").write_text("[]")


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def old_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.model")


def unknown(model: Path) -> None:
    change(model, model_type="perpetuum")


def nameless(model: Path) -> None:
    change(model, model_type=None)


def own_code(model: Path) -> None:
    change(model, model_file="model.py")


def no_heads(model: Path) -> None:
    change(model, num_attention_heads=None)


def no_context(model: Path) -> None:
    change(model, max_position_embeddings=None)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (remove_weights, r"no model\*.safetensors; give a directory with"),
        (only_torch, r"PyTorch weights \(pytorch_model.bin\).*convert"),
        (only_gguf, r"m.gguf is a GGUF file.*llama.cpp"),
        (only_adapter, "an adapter.*merge it"),
        (cut_weights, "model.safetensors is cut short: .*again"),
        (cut_header, "no whole safetensors file.*again"),
        (no_safetensors, "no safetensors file.*again"),
        (pointer, "no whole safetensors file.*again"),
        (no_json, "config.json is no JSON object"),
        (a_list, "config.json is no JSON object"),
        (no_tokenizer, "holds no tokenizer.json; copy it"),
        (old_tokenizer, "tokenizer.model but no tokenizer.json; convert it"),
        (unknown, "'perpetuum'.*unknown to the installed mlx-lm.*update"),
        (nameless, "states no model_type"),
        (own_code, "code of its own.*'model.py'"),
        (no_heads, "does not state num_attention_heads.*add"),
        (no_context, "states no context length; state context_tokens"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_model_directory_is_refused_with_the_mend(model: Path, damage: object, what: str) -> None:
    assert callable(damage)
    damage(model)
    with pytest.raises(InputError, match=what):
        read_card(model, "a")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("no/such", "is no directory here, and nothing is downloaded; get it first.*hf download no/such"),
        ("/no/such/place", "does not exist; check the path"),
        ("weights.gguf", "is a GGUF file"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_to_go(path: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_card(Path(path), "a")


def test_a_quantised_model_is_not_quantised_again(model: Path) -> None:
    change(model, quantization={"group_size": 64, "bits": 4})
    assert read_card(model, "a").weight_bits == 4
    with pytest.raises(InputError, match=r"quantised already.*leave weight_bits out"):
        read_card(model, "a", weight_bits=8)


def test_a_draft_model_adds_its_bytes(model: Path, built: Path) -> None:
    alone = read_card(model, "a")
    pair = read_card(model, "a", draft=built)
    assert pair.weights_bytes == 2 * alone.weights_bytes
    assert pair.kv_bytes_per_token == 2 * alone.kv_bytes_per_token
    assert pair.draft == str(built)
    assert "draft" in pair.capabilities
    assert "draft" not in alone.capabilities


@pytest.mark.parametrize(
    ("old_text", "new_text", "what"),
    [
        ('"special":true', '"special":false', "is special in only one"),
        ('"content":"<|user|>"', '"content":"<|human|>"', "another vocabulary"),
    ],
)
def test_a_draft_model_of_another_family_is_refused(
    model: Path, built: Path, old_text: str, new_text: str, what: str
) -> None:
    text = json.dumps(json.loads((model / "tokenizer.json").read_text()), separators=(",", ":"))
    assert old_text in text
    (model / "tokenizer.json").write_text(text.replace(old_text, new_text, 1))
    with pytest.raises(InputError, match=what):
        read_card(built, "a", draft=model)


def test_a_draft_model_must_end_alike(model: Path, built: Path) -> None:
    rewrite(model / "tokenizer_config.json", {"eos_token": {"content": "<|user|>"}})
    with pytest.raises(InputError, match=r"eos_token of the draft model .* is '<\|user\|>'"):
        read_card(built, "a", draft=model)
    with pytest.raises(InputError, match="cannot draft for itself"):
        read_card(built, "a", draft=built)


def test_the_simulating_engine_has_cards_too(tmp_path: Path) -> None:
    config = {"architecture": "sim", "weights_bytes": 10, "kv_bytes_per_token": 3, "context_tokens": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = read_card(tmp_path, "s")
    assert (card.architecture, card.weights_bytes, card.kv_bytes_per_token) == ("sim", 10, 3)
    assert read_card(tmp_path, "s", context_tokens=20).context_tokens == 20
    with pytest.raises(InputError, match="context_tokens 51"):
        read_card(tmp_path, "s", context_tokens=51)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"weights_bytes": "many"}, "weights_bytes 'many'"),
        ({"capabilities": ["flight"]}, "flight"),
    ],
)
def test_a_wrong_description_for_the_simulating_engine_is_refused(
    tmp_path: Path, config: dict[str, Json], what: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "sim", **config}))
    with pytest.raises(InputError, match=what):
        read_card(tmp_path, "s")

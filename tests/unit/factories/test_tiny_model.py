from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.factories.tiny_model import Floats, ModelShape, build_tiny_model, write_safetensors
from tokenizers import Tokenizer

SMALL = ModelShape(vocabulary=400, hidden=32, layers=1, feed_forward=48)
TEXTS = ["the weir holds the water back", "the water falls over the weir", "how fast does the water fall"] * 4


def read_safetensors(path: Path) -> dict[str, Floats]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    found: dict[str, Floats] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        data = np.frombuffer(raw[8 + length + start : 8 + length + end], dtype="<f4")
        found[name] = data.reshape(entry["shape"])
    return found


def test_the_same_texts_and_seed_give_the_same_model(tmp_path: Path) -> None:
    one = build_tiny_model(tmp_path / "one", TEXTS, shape=SMALL)
    two = build_tiny_model(tmp_path / "two", TEXTS, shape=SMALL)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    one = build_tiny_model(tmp_path / "one", TEXTS, shape=SMALL, seed=1)
    two = build_tiny_model(tmp_path / "two", TEXTS, shape=SMALL, seed=2)
    assert (one / "model.safetensors").read_bytes() != (two / "model.safetensors").read_bytes()


def test_the_head_prefers_what_followed_in_the_texts(tmp_path: Path) -> None:
    directory = build_tiny_model(tmp_path / "m", TEXTS, shape=SMALL)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tensors = read_safetensors(directory / "model.safetensors")
    ids: list[int] = tokenizer.encode("the water").ids
    present = tensors["model.embed_tokens.weight"][ids[0] : ids[0] + 1]
    scores = (tensors["lm_head.weight"] @ present.T)[:, 0]
    best = {tokenizer.decode([int(index)]) for index in np.argsort(scores)[-2:]}
    assert best == {" water", " weir"}


def test_all_rows_of_the_embedding_have_one_length(tmp_path: Path) -> None:
    directory = build_tiny_model(tmp_path / "m", TEXTS, shape=SMALL)
    rows = read_safetensors(directory / "model.safetensors")["model.embed_tokens.weight"]
    assert np.sqrt(np.mean(rows**2, axis=1)) == pytest.approx(1, rel=1e-3)


def test_texts_come_back_from_the_tokenizer_as_they_were(tmp_path: Path) -> None:
    directory = build_tiny_model(tmp_path / "m", TEXTS, shape=SMALL)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in ("the weir", "Grüße, 水 and 🌊", "  two  spaces\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_safetensors_data_is_aligned_and_whole(tmp_path: Path) -> None:
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), dtype=np.float32)}
    write_safetensors(tmp_path / "t", tensors)
    (length,) = struct.unpack("<Q", (tmp_path / "t").read_bytes()[:8])
    back = read_safetensors(tmp_path / "t")
    assert length % 8 == 0
    assert all(np.array_equal(back[name], tensor) for name, tensor in tensors.items())

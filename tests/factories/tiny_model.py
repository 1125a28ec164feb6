"""Builds a very small language model, so that a real model server can be measured where there is no model.

The model is a Llama of about two million parameters whose weights are computed, not trained: its embedding
and output head are the factors of a table of how often one token follows another in the given texts, so that
it writes words rather than noise, while the layers between do a transformer's ordinary work. It hardly ever
ends by itself: an answer has as many tokens as were asked for.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenweir.core.requests import Json

Floats = NDArray[np.float32]

_END = "<|end|>"
_ASSISTANT = "<|assistant|>"
# The trainer numbers special tokens first, in this order.
_SPECIAL = (_END, "<|system|>", "<|user|>", _ASSISTANT)

# Each turn is its role's mark, its text and the end mark, which is what chat servers expect a template to do.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# A next token never seen after the present one is this much less likely than one seen once.
_UNSEEN = 1e-3


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The size of the model: ``hidden`` must be a multiple of ``heads``, and ``heads`` of ``kv_heads``."""

    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 4096


def build_tiny_model(
    directory: Path, texts: Sequence[str], *, seed: int = 7, shape: ModelShape | None = None
) -> Path:
    """Write a model directory that ``mlx_lm`` and ``transformers`` can load, and return it.

    The same texts, seed and shape give the same model. ``config.json`` is written last: a directory that has
    it is whole.
    """
    shape = shape or ModelShape()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(texts, shape.vocabulary)
    size: int = tokenizer.get_vocab_size()
    end = _SPECIAL.index(_END)
    counts = _follow_counts(tokenizer, texts, size)
    tensors = _weights(counts, shape, np.random.default_rng(seed))
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(shape))
    _write_json(directory / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    write_safetensors(directory / "model.safetensors", tensors)
    _write_json(directory / "config.json", _model_config(shape, size, end))
    return directory


def write_safetensors(path: Path, tensors: Mapping[str, Floats]) -> None:
    """Write float32 tensors in the safetensors format: header length, JSON header, little-endian data."""
    header: dict[str, Json] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    raw = {name: np.ascontiguousarray(tensor, dtype="<f4") for name, tensor in tensors.items()}
    for name, tensor in raw.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)))
        file.write(head)
        for tensor in raw.values():
            file.write(tensor.tobytes())


def _train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _follow_counts(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> Floats:
    """Return how often token j follows token i; a text's first token follows the assistant's mark."""
    counts = np.zeros((size, size), dtype=np.float32)
    start = _SPECIAL.index(_ASSISTANT)
    for text in texts:
        ids = np.array([start, *tokenizer.encode(text).ids], dtype=np.int64)
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    # A token that nothing follows goes on as a text does that begins.
    counts[counts.sum(axis=1) == 0] = counts[start]
    return counts


def _weights(counts: Floats, shape: ModelShape, random: np.random.Generator) -> dict[str, Floats]:
    """Return the tensors by the names that ``mlx_lm`` and ``transformers`` give those of a Llama."""
    embedding, head = _factors(counts, shape.hidden)
    width = shape.hidden
    per_head = width // shape.heads
    narrow = per_head * shape.kv_heads

    def draw(rows: int, columns: int, scale: float = 1.0) -> Floats:
        return (random.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        # Small outputs leave the embedding's direction, and with it the choice of the next token, in charge.
        tensors |= {
            prefix + "self_attn.q_proj.weight": draw(width, width),
            prefix + "self_attn.k_proj.weight": draw(narrow, width),
            prefix + "self_attn.v_proj.weight": draw(narrow, width),
            prefix + "self_attn.o_proj.weight": draw(width, width, 0.02),
            prefix + "mlp.gate_proj.weight": draw(shape.feed_forward, width),
            prefix + "mlp.up_proj.weight": draw(shape.feed_forward, width),
            prefix + "mlp.down_proj.weight": draw(width, shape.feed_forward, 0.02),
            prefix + "input_layernorm.weight": np.ones(width, dtype=np.float32),
            prefix + "post_attention_layernorm.weight": np.ones(width, dtype=np.float32),
        }
    tensors["model.norm.weight"] = np.ones(width, dtype=np.float32)
    return tensors


def _factors(counts: Floats, width: int) -> tuple[Floats, Floats]:
    """Return embedding and head whose product after RMS normalisation is nearly log P(next | present).

    Normalisation would lose the length of a row. One more dimension, which the head ignores, gives all rows
    the same length, so that nothing is lost.
    """
    likely = np.log((counts + _UNSEEN) / (counts + _UNSEEN).sum(axis=1, keepdims=True))
    likely -= likely.mean(axis=1, keepdims=True)
    left, strength, right = np.linalg.svd(likely, full_matrices=False)
    kept = min(width - 1, len(strength))
    rows = left[:, :kept] * strength[:kept]
    longest = float(np.linalg.norm(rows, axis=1).max())
    embedding = np.zeros((len(counts), width), dtype=np.float32)
    embedding[:, :kept] = rows
    embedding[:, -1] = np.sqrt(np.maximum(longest**2 - (rows**2).sum(axis=1), 0))
    head = np.zeros_like(embedding)
    head[:, :kept] = right[:kept].T * (longest / math.sqrt(width))
    # Rows of RMS 1 keep the layers' random outputs small beside them.
    return embedding * (math.sqrt(width) / longest), head


def _model_config(shape: ModelShape, size: int, end: int) -> dict[str, Json]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.feed_forward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": size,
        "max_position_embeddings": shape.context,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }


def _tokenizer_config(shape: ModelShape) -> dict[str, Json]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _END,
        "eos_token": _END,
        "pad_token": _END,
        "additional_special_tokens": list(_SPECIAL[1:]),
        "model_max_length": shape.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


def _write_json(path: Path, value: Mapping[str, Json]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""Model directories for the real engine: tiny Llamas of random weights, whose answers depend on every token before."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from tests.factories.tiny_model import Floats, ModelShape, build_tiny_model, write_safetensors

TEXTS = (
    "the weir holds the water back and the river measures its own flow",
    'a model answers {"name": "weir", "level": 12, "open": true, "gates": [1, 2, 3]} when it is asked to',
    "how fast does the water fall? It falls as fast as tokens do: 0123456789 per second, no more",
    "Grüße vom Wehr: 水は流れる, and a wave 🌊 comes after",
)

SMALL = ModelShape(vocabulary=384, hidden=64, layers=2, heads=2, kv_heads=1, feed_forward=96, context=2048)
DRAFT = ModelShape(vocabulary=384, hidden=32, layers=1, heads=1, kv_heads=1, feed_forward=48, context=2048)

TOOL_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if tools %}Write <tool_call>{'name': …, 'arguments': …}</tool_call> to call: {{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def random_llama(
    directory: Path, *, seed: int = 3, shape: ModelShape = SMALL, scale: float = 1.0, template: str = ""
) -> Path:
    """Write a Llama whose every weight is random, and return its directory.

    Models of the same vocabulary have the same tokenizer. ``scale`` of the output layer decides how sure it is of
    its tokens.
    """
    build_tiny_model(directory, TEXTS, shape=shape)
    random = np.random.default_rng(seed)
    config = json.loads((directory / "config.json").read_text())
    write_safetensors(directory / "model.safetensors", _weights(config, random, scale))
    if template:
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        settings["chat_template"] = template
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; ``None`` takes one out."""
    found = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    found = {key: value for key, value in (found | changes).items() if value is not None}
    path.write_bytes(msgspec.json.encode(found))


def _weights(config: dict[str, int], random: np.random.Generator, scale: float) -> dict[str, Floats]:
    width, inner, size = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    narrow = config["head_dim"] * config["num_key_value_heads"]

    def draw(rows: int, columns: int, factor: float = 1.0) -> Floats:
        return (random.standard_normal((rows, columns)) * factor / np.sqrt(columns)).astype(np.float32)

    ones = np.ones(width, dtype=np.float32)
    tensors = {
        "model.embed_tokens.weight": draw(size, width, np.sqrt(width)),
        "lm_head.weight": draw(size, width, 3 * scale),
        "model.norm.weight": ones,
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": draw(width, width, 2),
            prefix + "self_attn.k_proj.weight": draw(narrow, width, 2),
            prefix + "self_attn.v_proj.weight": draw(narrow, width, 2),
            prefix + "self_attn.o_proj.weight": draw(width, width, 2),
            prefix + "mlp.gate_proj.weight": draw(inner, width),
            prefix + "mlp.up_proj.weight": draw(inner, width),
            prefix + "mlp.down_proj.weight": draw(width, inner),
            prefix + "input_layernorm.weight": ones,
            prefix + "post_attention_layernorm.weight": ones,
        }
    return tensors

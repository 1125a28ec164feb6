"""Models whose layers keep something else than all keys and values: a window, or a state."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.factories.language_models import random_llama

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_global_base_freq": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 32,
        "sliding_window": 32,
        "sliding_window_pattern": 3,
    },
    "lfm2": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
        "rope_theta": 1e6,
        "layer_types": ["conv", "full_attention", "conv"],
    },
}


def random_model(directory: Path, kind: str, *, seed: int = 1) -> Path:
    """Write a model of one of :data:`CONFIGS` with random weights. Needs mlx-lm, which knows its tensors."""
    random_llama(directory)
    whole = json.loads((directory / "config.json").read_text())
    kept = {key: whole[key] for key in ("vocab_size", "eos_token_id", "bos_token_id")}
    config = {**CONFIGS[kind], **kept, "model_type": kind, "max_position_embeddings": 1024}
    (directory / "config.json").write_text(json.dumps(config))
    mx: Any = importlib.import_module("mlx.core")
    utils: Any = importlib.import_module("mlx.utils")
    family: Any = importlib.import_module(f"mlx_lm.models.{kind}")
    model = family.Model(family.ModelArgs.from_dict(config))
    mx.random.seed(seed)
    tensors = {
        name: mx.random.normal(array.shape) * (1.5 / array.shape[-1] ** 0.5 if array.ndim > 1 else 0.1)
        for name, array in utils.tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return directory

"""A Llama in numpy, written from the paper's formulas: what the real engine's answers are compared with."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.factories.tiny_model import Floats


class ReferenceLlama:
    """Computes a whole sequence at once, in float64, without a cache."""

    def __init__(self, directory: Path) -> None:
        self._config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self._tensors = read_safetensors(directory / "model.safetensors")

    def logits(self, tokens: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Return a row of logits for each place."""
        hidden = self._tensors["model.embed_tokens.weight"][list(tokens)].astype(np.float64)
        for layer in range(self._config["num_hidden_layers"]):
            part = f"model.layers.{layer}."
            hidden = hidden + self._attend(self._norm(hidden, part + "input_layernorm"), part + "self_attn.")
            inner = self._norm(hidden, part + "post_attention_layernorm")
            gate = self._times(inner, part + "mlp.gate_proj")
            up = self._times(inner, part + "mlp.up_proj")
            hidden = hidden + self._times(gate / (1 + np.exp(-gate)) * up, part + "mlp.down_proj")
        return self._times(self._norm(hidden, "model.norm"), "lm_head")

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Return a row of natural-log probabilities for each place."""
        logits = self.logits(tokens)
        logits = logits - logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the likeliest ``count`` tokens after ``prompt``, one after the other."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(np.argmax(self.logits(tokens)[-1])))
        return tokens[len(prompt) :]

    def _times(self, hidden: np.ndarray, name: str) -> np.ndarray:
        return hidden @ self._tensors[name + ".weight"].T.astype(np.float64)

    def _norm(self, hidden: np.ndarray, name: str) -> np.ndarray:
        mean = (hidden**2).mean(axis=-1, keepdims=True)
        return hidden / np.sqrt(mean + self._config["rms_norm_eps"]) * self._tensors[name + ".weight"]

    def _attend(self, hidden: np.ndarray, part: str) -> np.ndarray:
        places, heads, groups = (
            len(hidden),
            self._config["num_attention_heads"],
            self._config["num_key_value_heads"],
        )
        width = self._config["head_dim"]
        queries = self._rotate(self._times(hidden, part + "q_proj").reshape(places, heads, width))
        keys = self._rotate(self._times(hidden, part + "k_proj").reshape(places, groups, width))
        values = self._times(hidden, part + "v_proj").reshape(places, groups, width)
        keys, values = (np.repeat(each, heads // groups, axis=1) for each in (keys, values))
        scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(width)
        scores[:, np.triu(np.ones((places, places), dtype=bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, values).reshape(places, heads * width)
        return self._times(mixed, part + "o_proj")

    def _rotate(self, heads: np.ndarray) -> np.ndarray:
        half = heads.shape[-1] // 2
        theta: float = self._config["rope_theta"]
        speeds = theta ** (-np.arange(half, dtype=np.float64) / half)
        angles = np.multiply.outer(np.arange(len(heads), dtype=np.float64), speeds)[:, None, :]
        first, second = heads[..., :half], heads[..., half:]
        return np.concatenate(
            [
                first * np.cos(angles) - second * np.sin(angles),
                second * np.cos(angles) + first * np.sin(angles),
            ],
            axis=-1,
        )


def read_safetensors(path: Path) -> dict[str, Floats]:
    """Return the float32 tensors in a file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    found: dict[str, Floats] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            data = np.frombuffer(raw[8 + length + start : 8 + length + end], dtype="<f4")
            found[name] = data.reshape(entry["shape"])
    return found

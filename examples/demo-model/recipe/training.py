"""The training loop: a small Qwen3 learns the tasks with Muon, on a CPU, for so much processor time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3

from recipe.batches import Batch
from recipe.vocabulary import CONTEXT, SIZE

END_ID: Final = 0
_MUON_RATE: Final = 0.012
_ADAM_RATE: Final = 3e-3
_WARM_UP_STEPS: Final = 40
_LAST_RATE: Final = 0.02
_CLIP: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of the model."""

    vocab_size: int = SIZE
    hidden_size: int = 128
    num_hidden_layers: int = 4
    intermediate_size: int = 256
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = CONTEXT

    def config(self) -> dict[str, Any]:
        """Return what ``config.json`` says of the model."""
        return {
            **asdict(self),
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": END_ID,
            "pad_token_id": END_ID,
            "torch_dtype": "bfloat16",
        }


def new_model(shape: Shape, seed: int) -> Any:  # noqa: ANN401 - mlx_lm has no types
    """Return an untrained model, the same for the same seed."""
    mx.random.seed(seed)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(shape.config()))
    # The embedding is the output head too: small, so that the first guesses are even.
    embedding = model.model.embed_tokens
    embedding.weight = mx.random.normal(embedding.weight.shape) * 0.05
    # What the layers add begins at nothing, so that no noise has to be unlearnt first.
    for layer in model.model.layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight = mx.zeros_like(last.weight)
    mx.eval(model.parameters())
    return model


def parameters(model: Any) -> int:  # noqa: ANN401
    """Return how many weights ``model`` has."""
    return sum(weights.size for _, weights in tree_flatten(model.parameters()))


def write_weights(model: Any, shape: Shape, directory: Path) -> None:  # noqa: ANN401
    """Write weights, as bfloat16, and ``config.json``, which comes last: with it the directory is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    halved = tree_map(lambda weights: weights.astype(mx.bfloat16), model.parameters())
    mx.save_safetensors(
        str(directory / "model.safetensors"), dict(tree_flatten(halved)), metadata={"format": "mlx"}
    )
    eos = {"bos_token_id": None, "eos_token_id": END_ID}
    _write_json(directory / "generation_config.json", eos)
    _write_json(directory / "config.json", shape.config())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_matrix(name: str, weights: mx.array) -> bool:
    return weights.ndim == 2 and "embed" not in name  # noqa: PLR2004


def _loss(
    model: Any,  # noqa: ANN401
    tokens: mx.array,
    places: mx.array,
    following: mx.array,
    weights: mx.array,
) -> mx.array:
    hidden = model.model(tokens)
    # Only what is learnt goes through the output head.
    hidden = hidden.reshape(-1, hidden.shape[-1])[places]
    scores = model.model.embed_tokens.as_linear(hidden)
    return nn.losses.cross_entropy(scores, following, weights=weights).sum() / weights.sum()


def train(
    model: Any,  # noqa: ANN401
    batches: Iterator[Batch],
    *,
    seconds: float,
    steps: int | None,
    pace: float,
    report: Callable[[int, float, float], None],
) -> int:
    """Train for ``seconds`` of processor time, or for ``steps`` steps, and return how many steps there were.

    The learning rate, ``pace`` times the usual one, falls over that time. ``report`` hears the step, how far the
    training is (0 to 1) and the loss, after every step. Time is the processor's, so that a busy machine gives no
    worse a model.
    """
    muon = optim.Muon(_MUON_RATE, weight_decay=0.0)
    adam = optim.AdamW(_ADAM_RATE, betas=[0.9, 0.98], weight_decay=0.0)
    optimizer = optim.MultiOptimizer([muon, adam], [_is_matrix])
    measure = nn.value_and_grad(model, partial(_loss, model))
    started, step = time.process_time(), 0
    for batch in batches:
        done = step / steps if steps else (time.process_time() - started) / seconds
        if done >= 1:
            break
        rate = pace * min(1.0, (step + 1) / _WARM_UP_STEPS) * max(_LAST_RATE, 1 - done)
        muon.learning_rate, adam.learning_rate = _MUON_RATE * rate, _ADAM_RATE * rate
        loss, gradients = measure(
            *map(mx.array, (batch.tokens, batch.places, batch.following, batch.weights))
        )
        gradients, _ = optim.clip_grad_norm(gradients, _CLIP)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        step += 1
        report(step, done, float(loss))
    return step

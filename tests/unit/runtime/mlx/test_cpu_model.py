from __future__ import annotations

import importlib
from typing import Any, cast

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

import mlx.core as mx
import numpy as np

from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.arrays import evaluate
from tokenweir.runtime.engines.mlx.cpu_model import CpuModel, fastest
from tokenweir.runtime.engines.mlx.cpu_weights import Linear, read
from tokenweir.runtime.engines.mlx.hands import Hands

generate: Any = importlib.import_module("mlx_lm.generate")

pytestmark = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="for machines without a GPU")

PLAIN: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 97,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
WINDOWED = ["full_attention", "sliding_attention", "full_attention"]
KNOWN: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, places scaled": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
}
FOREIGN: dict[str, dict[str, Any]] = {
    "a window": {"model_type": "llama", "layer_types": WINDOWED, "sliding_window": 32},
    "pairs turned": {"model_type": "llama", "rope_traditional": True},
    "another build": {"model_type": "gemma", "head_dim": 8},
}
PROMPTS = [[5, 6, 7], [*range(1, 41)], [44], [9, 80, 31, 7, 12, 20], [3] * 17]
LENGTHS = [290, 30, 64, 5, 100]


def build(**settings: Any) -> Any:  # noqa: ANN401 - a model of MLX LM
    mx.random.seed(7)
    module = importlib.import_module(f"mlx_lm.models.{settings['model_type']}")
    model = module.Model(module.ModelArgs.from_dict({**PLAIN, **settings}))
    # As drawn, weights are so small that a layer hardly changes what passes it.
    model.update({"model": scaled(model.model.parameters())})
    evaluate(model.parameters(), mx.random.state)
    return model


def scaled(tree: Any) -> Any:  # noqa: ANN401 - nested parameters
    if isinstance(tree, dict):
        return {name: scaled(value) for name, value in tree.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(tree, list):
        return [scaled(value) for value in tree]  # pyright: ignore[reportUnknownVariableType]
    return tree * 3 if tree.ndim > 1 else tree + mx.random.normal(tree.shape) * 0.2


def answers(forward: Any, prefill: int) -> list[list[int]]:  # noqa: ANN401 - a model, or what stands for it
    """Return the likeliest tokens after each prompt, the last two prompts joining when others answer already."""
    generator = generate.BatchGenerator(forward, prefill_step_size=prefill)
    found: dict[int, list[int]] = {}
    generator.insert([list(prompt) for prompt in PROMPTS[:3]], max_tokens=LENGTHS[:3])
    waiting = True
    while True:
        read, drawn = generator.next()
        for response in drawn:
            found.setdefault(response.uid, []).append(response.token)
        if waiting and sum(map(len, found.values())) > 40:
            generator.insert([list(prompt) for prompt in PROMPTS[3:]], max_tokens=LENGTHS[3:])
            waiting = False
        elif not read and not drawn:
            return [found[uid] for uid in sorted(found)]


@pytest.mark.parametrize(("kind", "prefill"), [*((kind, 7) for kind in KNOWN), ("llama", 512)])
def test_a_batch_draws_the_tokens_that_the_package_s_own_model_draws(kind: str, prefill: int) -> None:
    model = build(**KNOWN[kind])
    expected = answers(model, prefill)
    ours = fastest(model)
    assert isinstance(ours, CpuModel)
    found = answers(ours, prefill)
    assert [len(tokens) for tokens in found] == LENGTHS
    assert found == expected
    assert len({token for tokens in found for token in tokens}) > 10


@pytest.mark.parametrize("in_pieces", [False, True])
def test_two_threads_draw_the_tokens_that_the_package_s_own_model_draws(in_pieces: bool) -> None:  # noqa: FBT001
    model = build(model_type="llama", vocab_size=96)
    found: list[list[list[int]]] = []
    lengths = [40 - row for row in range(33)]
    weights = read(model, in_pieces=in_pieces)
    assert weights is not None
    for forward in (model, CpuModel(model, weights, Hands(2))):
        generator = generate.BatchGenerator(forward, completion_batch_size=40, prefill_batch_size=40)
        prompts = [[(7 * row + place) % 96 for place in range(row % 9 + 1)] for row in range(33)]
        generator.insert(prompts, max_tokens=lengths)
        tokens: dict[int, list[int]] = {}
        while sum(map(len, tokens.values())) < sum(lengths):
            for response in generator.next()[1]:
                tokens.setdefault(response.uid, []).append(response.token)
        found.append([tokens[uid] for uid in sorted(tokens)])
    assert found[0] == found[1]
    assert [len(each) for each in found[1]] == lengths


@pytest.mark.parametrize("rows", [1, 2, 8, 19, 32, 40, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 192), (1024, 64), (5000, 32), (48, 97)])
def test_a_product_in_pieces_is_the_product(rows: int, inputs: int, outputs: int) -> None:
    draw = np.random.default_rng(5)
    matrix, bias, given = (
        draw.standard_normal(shape, dtype=np.float32)
        for shape in ((outputs, inputs), outputs, (rows, inputs))
    )
    expected = given.astype(np.float64) @ matrix.T.astype(np.float64) + bias
    linear = Linear(matrix, bias, in_pieces=True)
    out = np.empty((rows, outputs), np.float32)
    assert linear(given, out=out) is out
    for found in (linear(given), out):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KNOWN)
def test_logits_are_the_package_s_own_after_places_were_padded_and_taken_out(kind: str) -> None:
    model = build(**KNOWN[kind])
    found: list[list[mx.array]] = []
    for forward in (model, fastest(model)):
        caches: list[Any] = framework.batch_cache(model, 3)
        for each in caches:
            each.prepare(lengths=[4, 2, 3], right_padding=[0, 2, 1])
        forward(mx.array([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]), cache=caches)
        for each in caches:
            each.finalize()
        first = forward(mx.array([[10], [11], [12]]), cache=caches)
        for each in caches:
            each.filter([1, 2])
        found.append([first, forward(mx.array([[13], [14]]), cache=caches)])
    for own, ours in zip(*found, strict=True):
        assert ours.shape == own.shape
        assert mx.allclose(ours, own, rtol=1e-4, atol=1e-4).item()


def test_weights_are_in_memory_once() -> None:
    model = build(model_type="llama")
    evaluate(model.parameters())
    mx.clear_cache()
    before = mx.get_active_memory()
    ours = fastest(model)
    assert isinstance(ours, CpuModel)
    mx.clear_cache()
    # Each array may be rounded up to whole pages or lines of a cache.
    assert mx.get_active_memory() < before * 1.1


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_model_of_another_build_computes_itself(kind: str) -> None:
    model = build(**FOREIGN[kind])
    assert fastest(model) is model


def test_a_model_with_quantised_or_half_weights_computes_itself() -> None:
    model = build(model_type="llama", hidden_size=64, intermediate_size=128, num_attention_heads=4)
    framework.quantise_model(model, {}, bits=8, group=32)
    assert fastest(model) is model
    half = build(model_type="llama")
    half.set_dtype(mx.float16)
    assert fastest(half) is half


def test_a_model_that_comes_to_something_else_computes_itself() -> None:
    model = build(model_type="llama")
    own = cast("Any", type(model.model))

    def louder(self: object, *args: object, **kwargs: object) -> mx.array:
        return own.__call__(self, *args, **kwargs) * 1.5

    model.model.__class__ = type("Louder", (own,), {"__call__": louder})
    assert fastest(model) is model

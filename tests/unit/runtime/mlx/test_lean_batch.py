from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

import mlx.core as mx
from tests.factories.language_models import random_llama

from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.lean_batch import LeanBatch, is_known, put_in

generate: Any = importlib.import_module("mlx_lm.generate")

PROMPTS = [[5, 6, 7], [9, 80, 31, 7, 12, 200], [44], [5, 300, 2, 7]]


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


def second(logits: mx.array) -> mx.array:
    return mx.argsort(logits, axis=-1)[:, -2]


def forbid(token: int) -> Any:  # noqa: ANN401 - a processor
    def process(_: mx.array, logits: mx.array) -> mx.array:
        logits[:, token] = -1e9
        return logits

    return process


def decode(generator: Any, samplers: Sequence[Any], processors: Sequence[Any]) -> dict[int, list[Any]]:  # noqa: ANN401
    found: dict[int, list[Any]] = {}
    generator.insert(
        [list(prompt) for prompt in PROMPTS],
        max_tokens=[8, 12, 5, 9],
        samplers=list(samplers),
        logits_processors=[list(each) for each in processors],
    )
    while True:
        read, drawn = generator.next()
        if not read and not drawn:
            return found
        for response in drawn:
            found.setdefault(response.uid, []).append((response.token, response.logprobs))


def test_the_installed_package_s_batch_is_the_one_that_is_replaced() -> None:
    assert is_known()


@pytest.mark.parametrize("samplers", [[greedy] * 4, [greedy, second, greedy, second], [None] * 4])
@pytest.mark.parametrize("processed", [False, True])
def test_a_lean_step_draws_what_the_package_s_own_step_draws(
    tmp_path: Path,
    samplers: Sequence[Any],
    processed: bool,  # noqa: FBT001
) -> None:
    model, _ = framework.load_model(random_llama(tmp_path / "m"))
    none: list[Any] = []
    some = [[forbid(3)], none, [forbid(7), forbid(9)], none]
    processors = some if processed else [none] * 4
    own = decode(generate.BatchGenerator(model), samplers, processors)
    generator = generate.BatchGenerator(model)
    lean = put_in(generator)
    assert isinstance(lean, LeanBatch)
    lean.wanted = frozenset({1})
    ours = decode(generator, samplers, processors)
    assert {uid: [token for token, _ in row] for uid, row in ours.items()} == {
        uid: [token for token, _ in row] for uid, row in own.items()
    }
    for (_, mine), (_, theirs) in zip(ours[1], own[1], strict=True):
        assert mx.allclose(mine, theirs, atol=1e-4).item()
    # A row's first token comes from the step that ended its prompt, which is the package's own.
    assert all(logprobs is None for _, logprobs in ours[0][1:])


def test_a_generator_at_work_is_left_as_it_is(tmp_path: Path) -> None:
    model, _ = framework.load_model(random_llama(tmp_path / "m"))
    generator = generate.BatchGenerator(model)
    generator.insert([[5, 6]], max_tokens=[4])
    generator.next()
    generator.next()
    assert put_in(generator) is None

"""The process that ``runtime_engine`` measures: our batch lane and MLX LM's own loop, in turns, on one model.

``python -m benchmarks.runtime_lanes MODEL_DIRECTORY`` prints a JSON object of figures. It is a process of its own, so
that a fast BLAS can be loaded into it and nothing else.
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tokenweir.ports.inference import (
    Decoder,
    DecodeSequence,
    Decoding,
    Drawn,
    LoadSpec,
    Prefilled,
    StepLimits,
)
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.models.manifest import read_card

BATCHES = (1, 8, 32)
PROMPT_TOKENS = 32
ANSWER_TOKENS = {1: 96, 8: 64, 32: 48}
TURNS = {1: 6, 8: 8, 32: 12}
PREFIX_TOKENS = 1000
PREFIX_TURNS = 5
LIMITS = StepLimits(batch=32, prefill_tokens=1024)

_numbers = count()
_draw = random.Random(1)


def main() -> None:
    """Measure, and print what was found: the bare loop alone, or both."""
    directory = Path(sys.argv[1])
    if sys.argv[2:3] == ["bare"]:
        print(json.dumps(_alone(directory, int(sys.argv[3]), int(sys.argv[4]))))
        return
    engine = registry.create("mlx", EngineOptions(prefix_cache_bytes=256 << 20))
    spec = LoadSpec(name="m", path=str(directory))
    loaded = engine.load(spec, read_card(directory, "m"))
    if loaded.decoder is None:
        raise RuntimeError("the model does not decode")
    decoder = loaded.decoder
    model: Any = importlib.import_module("mlx_lm.utils").load_model(directory)[0]
    found: dict[str, float] = {}
    for size in BATCHES:
        bare, ours = _turns(model, decoder, size)
        found[f"bare loop, {size} together"] = statistics.median(bare)
        found[f"batch lane, {size} together"] = statistics.median(ours)
        found[f"batch lane / bare loop, {size} together"] = statistics.median(
            our / their for our, their in zip(ours, bare, strict=True)
        )
    cold, warm = zip(*(_first_token(decoder) for _ in range(PREFIX_TURNS)), strict=True)
    found["TTFT, 1,000 tokens, cold"] = statistics.median(cold) * 1e3
    found["TTFT, known / cold"] = statistics.median(w / c for w, c in zip(warm, cold, strict=True))
    print(json.dumps(found))


def _alone(directory: Path, prompt_tokens: int, tokens: int) -> dict[str, float]:
    """Return the bare loop's tokens per second at 32 sequences together, and the milliseconds of a step with one."""
    model: Any = importlib.import_module("mlx_lm.utils").load_model(directory)[0]
    together: list[float] = []
    steps: list[float] = []
    for turn in range(TURNS[32] // 2 + 1):
        prompts = [_prompt(prompt_tokens) for _ in range(32)]
        speeds = [_bare(model, each, tokens) for each in (prompts, prompts[:1])]
        if turn:
            together.append(speeds[0])
            steps.append(1e3 / speeds[1])
    return {"together": statistics.median(together), "step_ms": statistics.median(steps)}


def _turns(model: Any, decoder: Decoder, size: int) -> tuple[list[float], list[float]]:  # noqa: ANN401 - MLX LM's
    """Return tokens per second of both, turn by turn; the first turn of each only warms up."""
    bare: list[float] = []
    ours: list[float] = []
    for turn in range(TURNS[size] + 1):
        prompts = [_prompt(PROMPT_TOKENS) for _ in range(size)]
        tokens = ANSWER_TOKENS[size]
        if turn % 2:
            speeds = (_bare(model, prompts, tokens), _ours(decoder, prompts, tokens))
        else:
            speeds = (_ours(decoder, prompts, tokens), _bare(model, prompts, tokens))[::-1]
        if turn:
            bare.append(speeds[0])
            ours.append(speeds[1])
    return bare, ours


def _bare(model: Any, prompts: Sequence[list[int]], tokens: int) -> float:  # noqa: ANN401 - MLX LM's
    """Return the tokens per second of MLX LM's ``BatchGenerator`` and nothing around it."""
    generate: Any = importlib.import_module("mlx_lm.generate")
    generator = generate.BatchGenerator(
        model, max_tokens=tokens, completion_batch_size=32, prefill_batch_size=8, prefill_step_size=1024
    )
    generator.insert([list(prompt) for prompt in prompts])
    made = 0
    start = time.perf_counter()
    while made < tokens * len(prompts):
        _, responses = generator.next()
        made += len(responses)
    took = time.perf_counter() - start
    generator.close()
    return made / took


def _ours(decoder: Decoder, prompts: Sequence[list[int]], tokens: int) -> float:
    """Return the tokens per second of our batch lane, to the port's events."""
    how = Decoding(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    decoder.insert(
        [DecodeSequence(sequence=next(_numbers), tokens=tuple(prompt), decoding=how) for prompt in prompts]
    )
    made = 0
    start = time.perf_counter()
    while made < tokens * len(prompts):
        made += sum(isinstance(event, Drawn) for event in decoder.step(LIMITS))
    return made / (time.perf_counter() - start)


def _first_token(decoder: Decoder) -> tuple[float, float]:
    """Return the seconds to the first token of a prompt never seen, and of the same again."""
    prompt = _prompt(PREFIX_TOKENS)
    cold = _seconds(decoder, prompt, cached=0)
    return cold, _seconds(decoder, prompt, cached=PREFIX_TOKENS - 1)


def _seconds(decoder: Decoder, prompt: list[int], *, cached: int) -> float:
    how = Decoding(max_tokens=1, temperature=0.0, ignore_eos=True)
    decoder.insert([DecodeSequence(sequence=next(_numbers), tokens=tuple(prompt), decoding=how)])
    start = time.perf_counter()
    while True:
        for event in decoder.step(LIMITS):
            if isinstance(event, Prefilled) and event.cached_tokens != cached:
                raise RuntimeError(f"{event.cached_tokens} tokens were known instead of {cached}")
            if isinstance(event, Drawn):
                return time.perf_counter() - start


def _prompt(tokens: int) -> list[int]:
    return [_draw.randrange(4, 2000) for _ in range(tokens)]


if __name__ == "__main__":
    main()

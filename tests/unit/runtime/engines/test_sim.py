from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from tests.factories.sim_models import LIMITS, card, directory, load, of_sequence, sequence

from tokenweir.core.errors import ConfigError, InputError, NoMemoryError, WeirError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import Broken, Drawn, LoadSpec, Prefilled, StepEvent
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.engines.sim import SimEngine
from tokenweir.runtime.engines.sim_decoder import SimDecoder
from tokenweir.runtime.engines.sim_tokens import decode, encode

PROMPT = encode("<|user|>hello there<|end|><|assistant|>")


def decoder(at: Path, **keys: Json) -> SimDecoder:
    found = load(directory(at / "m", **keys)).decoder
    assert found is not None
    return found


def run(one: SimDecoder, steps: int = 400) -> list[StepEvent]:
    return [event for _ in range(steps) for event in one.step(LIMITS)]


def said(events: list[StepEvent], number: int = 1) -> list[int]:
    drawn = [event for event in of_sequence(events, number) if isinstance(event, Drawn)]
    return [event.token for event in drawn if event.token >= 0]


def answer(at: Path, prompt: str, **keys: Json) -> str:
    one = decoder(at, **keys)
    one.insert([sequence(1, encode(prompt))])
    return decode(said(run(one)))


def test_an_answer_continues_where_it_was_cut(tmp_path: Path) -> None:
    one = decoder(tmp_path, output_tokens="constant:40")
    one.insert([sequence(1, PROMPT, max_tokens=20)])
    first = said(run(one))
    one.insert([sequence(2, PROMPT, max_tokens=30), sequence(3, [*PROMPT, *first], max_tokens=10)])
    events = run(one)
    assert said(events, 2) == first + said(events, 3)


def test_seeds_and_models_differ(tmp_path: Path) -> None:
    assert answer(tmp_path / "a", "x") == answer(tmp_path / "b", "x")
    assert answer(tmp_path / "a", "x") != answer(tmp_path / "c", "x", seed=1)
    assert answer(tmp_path / "a", "x") != answer(tmp_path / "b", "y")


def test_a_reply_can_be_told_in_advance(tmp_path: Path) -> None:
    replies: list[Json] = [{"when": "two and two", "text": "Four ☃."}]
    assert answer(tmp_path, "what is two and two?", replies=replies) == "Four ☃."
    assert answer(tmp_path, "what is three?", replies=replies) != "Four ☃."


def test_tools_are_called_when_they_are_asked_for(tmp_path: Path) -> None:
    tools = '<|tools|>[{"name":"add","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}]<|end|>'
    asked = f"{tools}<|user|>please add<|end|><|assistant|>"
    assert answer(tmp_path, asked) == '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>'
    assert "tool_call" not in answer(tmp_path, f"{tools}<|user|>hello<|end|><|assistant|>")
    assert "tool_call" not in answer(tmp_path, f"{asked}x<|end|><|tool|>2<|end|><|assistant|>")


def test_an_opened_reasoning_is_closed(tmp_path: Path) -> None:
    assert answer(tmp_path, "<|user|>x<|end|><|assistant|><think>").count("</think>") == 1


def test_images_are_seen(tmp_path: Path) -> None:
    one = decoder(tmp_path)
    tasks = [sequence(number, encode("<|image|>what?")) for number in (1, 2, 3)]
    pictures = [b"cat", b"dog", b"cat"]
    one.insert(
        [
            type(task)(sequence=task.sequence, tokens=task.tokens, decoding=task.decoding, images=(picture,))
            for task, picture in zip(tasks, pictures, strict=True)
        ]
    )
    events = run(one)
    assert said(events, 1) == said(events, 3) != said(events, 2)


def test_a_draft_model_is_reported_round_by_round(tmp_path: Path) -> None:
    one = decoder(tmp_path, output_tokens="constant:60")
    one.insert([sequence(1, PROMPT), sequence(2, PROMPT, lane="exclusive", use_draft=True, draft_tokens=4)])
    events = run(one)
    assert said(events, 1) == said(events, 2)
    drawn = [event for event in of_sequence(events, 2) if isinstance(event, Drawn)]
    taken = sum(event.drafted for event in drawn)
    assert 0 < taken < sum(event.proposed for event in drawn)
    assert {event.proposed for event in drawn} == {0, 4}


def test_the_exclusive_lane_takes_one_at_a_time(tmp_path: Path) -> None:
    one = decoder(tmp_path, output_tokens="constant:5")
    one.insert([sequence(number, PROMPT, lane="exclusive") for number in (1, 2)])
    order = [event.sequence for event in run(one)]
    assert order == sorted(order)


def test_kept_prompts_are_bounded(tmp_path: Path) -> None:
    model = load(directory(tmp_path / "m"), prefix_cache_bytes=2 * 16 * 1024)
    one = model.decoder
    assert one is not None
    for number in range(5):
        one.insert([sequence(number, [300 + number] * 64, max_tokens=1)])
        run(one, 3)
    assert one.prefix_bytes == 2 * 16 * 1024


def test_steps_take_the_time_they_are_told(tmp_path: Path) -> None:
    one = decoder(tmp_path, ttft="30ms", itl="10ms", prefill="1ms", output_tokens="constant:3")
    one.insert([sequence(1, PROMPT)])
    begun = time.monotonic()
    one.step(LIMITS)
    first = time.monotonic() - begun
    one.step(LIMITS)
    second = time.monotonic() - begun - first
    assert first >= 0.030 + 0.001 * len(PROMPT)
    assert second >= 0.010


@pytest.mark.parametrize(("kind", "error"), [("memory", MemoryError), ("error", RuntimeError)])
def test_a_step_may_fail(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    one = decoder(tmp_path, faults=[{"kind": kind, "when": "now", "after_tokens": 2}])
    one.insert([sequence(1, encode("fail now")), sequence(2, encode("stay well"))])
    assert len(said(list(one.step(LIMITS)) + list(one.step(LIMITS)))) == 2
    with pytest.raises(error):
        one.step(LIMITS)


def test_one_sequence_may_break_alone(tmp_path: Path) -> None:
    one = decoder(tmp_path, faults=[{"kind": "broken", "when": "now"}])
    one.insert([sequence(1, encode("break now")), sequence(2, encode("stay well"))])
    events = run(one)
    assert isinstance(of_sequence(events, 1)[-1], Broken)
    assert len(said(events, 2)) > 5


def test_a_step_may_stall_and_memory_may_leak(tmp_path: Path) -> None:
    faults: list[Json] = [{"kind": "stall", "duration": "50ms"}]
    one = decoder(tmp_path, faults=faults)
    one.insert([sequence(1, PROMPT)])
    begun = time.monotonic()
    one.step(LIMITS)
    assert time.monotonic() - begun >= 0.05
    leaking = decoder(tmp_path, faults=[{"kind": "leak", "bytes": 64 << 20}])
    leaking.insert([sequence(1, PROMPT)])
    tracemalloc.start()
    try:
        leaking.step(LIMITS)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept > 32 << 20


def test_loading_may_be_slow_or_refused(tmp_path: Path) -> None:
    begun = time.monotonic()
    load(directory(tmp_path / "slow", faults=[{"kind": "slow_load", "duration": "50ms"}]))
    assert time.monotonic() - begun >= 0.05
    with pytest.raises(NoMemoryError):
        load(directory(tmp_path / "large", faults=[{"kind": "load_memory"}]))


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    engine = SimEngine(EngineOptions(limit_bytes=1000))
    path = directory(tmp_path / "m", weights_bytes=700)
    known = card(path, weights_bytes=700)
    first = engine.load(LoadSpec(name="a", path=str(path)), known)
    assert engine.memory().active_bytes == 700
    with pytest.raises(NoMemoryError, match=r"'b' needs 700 bytes; 700 of 1,000 are taken"):
        engine.load(LoadSpec(name="b", path=str(path)), known)
    first.close()
    engine.load(LoadSpec(name="b", path=str(path)), known).close()
    assert engine.memory().active_bytes == 0


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"architecture": "llama"}, "does not describe a simulated model"),
        ({"sped": 1}, "unknown field `sped`"),
        ({"vocabulary": 100}, "vocabulary is below 512"),
        ({"itl": "fast"}, "itl 'fast' is no distribution"),
        ({"itl": "normal:1ms"}, "is no distribution"),
        ({"output_tokens": "uniform:9..3"}, "is no distribution"),
        ({"output_tokens": "-3"}, "is no distribution"),
        ({"prefill": "3"}, "prefill 3 has no unit"),
        ({"faults": [{"kind": "mutiny"}]}, "Invalid enum value 'mutiny'"),
    ],
)
def test_a_directory_that_says_something_else_is_refused(
    tmp_path: Path, keys: dict[str, Json], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        load(directory(tmp_path / "m", **keys))
    with pytest.raises(InputError, match="No such file"):
        SimEngine(EngineOptions()).load(LoadSpec(name="m", path=str(tmp_path / "no")), card(tmp_path / "no"))


def test_engines_are_found_by_name() -> None:
    assert registry.create("sim", EngineOptions()).name == "sim"
    assert registry.version("sim")
    assert "mlx" in registry.names()
    with pytest.raises(ConfigError, match=r"unknown engine 'abacus'; the engines are mlx"):
        registry.create("abacus", EngineOptions())
    with pytest.raises(WeirError, match="takes no option 'threads'"):
        registry.create("sim", EngineOptions(options={"threads": 4}))


def test_the_whole_prompt_is_announced_once(tmp_path: Path) -> None:
    one = decoder(tmp_path)
    one.insert([sequence(1, PROMPT, max_tokens=4)])
    events = run(one, 10)
    assert events[0] == Prefilled(sequence=1, prompt_tokens=len(PROMPT))
    assert sum(isinstance(event, Prefilled) for event in events) == 1

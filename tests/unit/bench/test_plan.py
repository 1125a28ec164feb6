from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenweir.bench.options import BenchOptions
from tokenweir.bench.plan import MAX_SAMPLES, MAX_TEXT_TOKENS, UNCOUNTED_SAMPLES, plan_workload
from tokenweir.bench.tokenizers import EstimateTokenizer, count_tokens
from tokenweir.bench.workload import Workload
from tokenweir.core.errors import SpecError

TOKENIZER = EstimateTokenizer()


def _plan(**overrides: object) -> Workload:
    options = BenchOptions.load(None, {"url": "http://h:1", "model": "m"} | overrides)
    return plan_workload(options, TOKENIZER, model="served")


def _trace(folder: Path, *lines: dict[str, object]) -> str:
    path = folder / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return f"trace={path}"


def test_without_corpus_and_scenario_the_shipped_one_is_asked() -> None:
    workload = _plan()
    assert workload.corpus.name == "weir-mix"
    assert workload.request(0, 0).model == "served"


def test_a_scenario_alone_is_synthetic() -> None:
    workload = _plan(scenario="D(20,7)", requests=12)
    assert (workload.corpus.name, len(workload)) == ("synthetic", 12)
    assert workload.input_tokens.tolist() == [20] * 12
    assert {workload.output_tokens(index) for index in range(12)} == {7}


def test_a_scenario_with_a_corpus_cuts_it() -> None:
    workload = _plan(scenario="D(20,7)", corpus="weir-mix", requests=12)
    assert (workload.corpus.name, len(workload)) == ("weir-mix", 12)
    texts = [sample.prompt or "" for sample in workload.corpus.samples]
    assert count_tokens(TOKENIZER, texts).tolist() == [20] * 12


def test_synthetic_samples_are_bounded_in_number_and_size() -> None:
    assert len(_plan(scenario="D(2,7)", duration="5s")) == UNCOUNTED_SAMPLES
    assert len(_plan(scenario="D(2,7)", requests=MAX_SAMPLES + 5)) == MAX_SAMPLES
    assert len(_plan(scenario=f"D({MAX_TEXT_TOKENS // 20},7)", requests=30, arrival="concurrency=1")) == 20


def test_unique_prompts_keep_their_exact_length() -> None:
    workload = _plan(scenario="D(20,7)", requests=12, unique_prompts=True)
    asked = [str(workload.request(index, 0).messages[0].content) for index in range(12)]
    assert count_tokens(TOKENIZER, asked).tolist() == workload.input_tokens.tolist() == [20] * 12
    again = str(workload.request(0, 1).messages[0].content)
    assert again[:9] != asked[0][:9]
    assert again[9:] == asked[0][9:]


def test_a_trace_of_lengths_is_synthetic_in_its_order(tmp_path: Path) -> None:
    arrival = _trace(
        tmp_path,
        {"timestamp": 1, "input_length": 30, "output_length": 3},
        {"timestamp": 2, "input_length": 10},
        {"timestamp": 3, "input_length": 20, "output_length": 5},
    )
    workload = _plan(arrival=arrival)
    assert workload.input_tokens.tolist() == [30, 10, 20]
    assert [workload.output_tokens(index) for index in range(3)] == [3, 256, 5]
    assert workload.order(3, 9, 0).sample.tolist() == [0, 1, 2]
    assert len(_plan(arrival=arrival, requests=2)) == 2


def test_a_trace_of_prompts_asks_them(tmp_path: Path) -> None:
    arrival = _trace(tmp_path, {"timestamp": 2, "prompt": "b"}, {"timestamp": 1, "prompt": "a"})
    workload = _plan(arrival=arrival)
    assert workload.corpus.name == "t.jsonl"
    assert [sample.prompt for sample in workload.corpus.samples] == ["a", "b"]
    with pytest.raises(SpecError, match="brings its own prompts"):
        _plan(arrival=arrival, corpus="weir-mix")


def test_a_trace_too_long_to_make_says_so(tmp_path: Path) -> None:
    arrival = _trace(
        tmp_path, {"timestamp": 1, "input_length": 5}, {"timestamp": 2, "input_length": MAX_TEXT_TOKENS}
    )
    with pytest.raises(SpecError, match="--requests"):
        _plan(arrival=arrival)
    assert len(_plan(arrival=arrival, requests=1)) == 1


def test_the_same_options_plan_the_same(tmp_path: Path) -> None:
    first, second = (_plan(scenario="N(40,9)/(20,5)", seed=4, requests=30) for _ in range(2))
    assert first.corpus.hash == second.corpus.hash
    assert first.corpus.hash != _plan(scenario="N(40,9)/(20,5)", seed=5, requests=30).corpus.hash

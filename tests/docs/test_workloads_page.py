from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tokenweir.bench import plan
from tokenweir.bench.arrivals import parse_arrivals
from tokenweir.bench.corpora import load_corpus
from tokenweir.bench.corpora.sentences import CHECKED_TOKENS
from tokenweir.bench.options import DEFAULT_REQUESTS, BenchOptions
from tokenweir.bench.tokenizers import BYTES_PER_TOKEN
from tokenweir.bench.workload import DEFAULT_MAX_TOKENS
from tokenweir.core.scenario import parse_scenario

PAGE = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


def _codes(section: str) -> list[str]:
    body = PAGE.partition(f"\n## {section}")[2].partition("\n## ")[0]
    return re.findall(r"`([^`\n]+)`", body)


@pytest.mark.parametrize(
    "text", [code for code in _codes("When") if re.match(r"[a-z]+(\(.*\)|=)", code) and "FILE" not in code]
)
def test_every_arrival_of_the_page_is_read(text: str) -> None:
    assert parse_arrivals(text)


@pytest.mark.parametrize("text", [code for code in _codes("What is asked") if re.match(r"[DNUE]\(", code)])
def test_every_scenario_of_the_page_is_read(text: str) -> None:
    assert parse_scenario(text).text == text


def test_the_spec_file_of_the_page_loads(tmp_path: Path) -> None:
    (content,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    path = tmp_path / "spec.toml"
    path.write_text(content)
    options = BenchOptions.load(path)
    assert set(tomllib.loads(content)) <= set(BenchOptions.model_fields)
    assert len(options.arrivals) == 3


def test_every_key_is_on_the_page() -> None:
    table = PAGE.partition("## Every key")[2]
    assert set(re.findall(r"`([a-z_]+)`", table)) >= set(BenchOptions.model_fields)


def test_numbers_of_the_page_are_those_of_the_code() -> None:
    for said in (
        f"point has {DEFAULT_REQUESTS} requests",
        f"holds {len(load_corpus('weir-mix'))} prompts",
        f"at most {plan.MAX_SAMPLES:,} synthetic samples",
        f"at most {plan.MAX_TEXT_TOKENS // 1_000_000} million tokens",
        f"and {plan.UNCOUNTED_SAMPLES:,} when only a duration",
        f"else {DEFAULT_MAX_TOKENS}.",
        f"up to {CHECKED_TOKENS:,} tokens",
        f"every {BYTES_PER_TOKEN} bytes",
    ):
        assert said in WORDS, said

from __future__ import annotations

import importlib.util
import json
import random
import re
from pathlib import Path

import pytest
from tests.factories.demo_model import FOLDER, recipe

from tokenweir.bench.corpora import load_corpus
from tokenweir.core.corpus import corpus_hash

tasks = recipe("tasks")
text = recipe("text")
KINDS = tuple(tasks.KINDS)

needs_tokenizers = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None or importlib.util.find_spec("jinja2") is None,
    reason="needs the extra 'demo'",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_third_of_each_kind_is_held_out_whatever_the_wording(kind: str) -> None:
    dice = random.Random(5)
    drawn = [tasks.KINDS[kind](dice) for _ in range(1500)]
    sides = {task.key: task.held_out for task in drawn}
    assert len(sides) > 200
    assert 0.25 < sum(sides.values()) / len(sides) < 0.42
    assert all(not tasks.draw(kind, dice, held_out=False).held_out for _ in range(20))
    assert all(tasks.draw(kind, dice, held_out=True).held_out for _ in range(20))


@pytest.mark.parametrize(("kind", "sign"), [("add", "+"), ("subtract", "-"), ("times", "*")])
def test_sums_are_right(kind: str, sign: str) -> None:
    dice = random.Random(6)
    for _ in range(200):
        task = tasks.KINDS[kind](dice)
        left, right = map(int, re.findall(r"\d+", task.turns[0]["content"]))
        assert int(task.answer) == {"+": left + right, "-": left - right, "*": left * right}[sign]


def test_order_and_wording_do_not_make_another_task() -> None:
    dice = random.Random(8)
    keys: dict[frozenset[int], set[str]] = {}
    for _ in range(4000):
        task = tasks.KINDS["add"](dice)
        keys.setdefault(frozenset(map(int, re.findall(r"\d+", task.turns[0]["content"]))), set()).add(
            task.key
        )
    assert all(len(found) == 1 for found in keys.values())


def test_answers_that_are_json_parse_and_calls_are_fenced() -> None:
    dice = random.Random(9)
    for _ in range(50):
        assert isinstance(json.loads(tasks.draw("extract", dice, held_out=True).answer), dict)
        assert isinstance(json.loads(tasks.draw("convert", dice, held_out=True).answer), dict)
        task = tasks.draw("tool", dice, held_out=True)
        call = re.fullmatch(r"<tool_call>(.*)</tool_call>", task.answer)
        if call is None:
            assert task.turns[-1] == {"role": "tool", "content": task.answer}
        else:
            assert json.loads(call[1])["name"] in {"calculator", "get_level"}


def test_the_shipped_corpus_is_what_the_recipe_makes() -> None:
    corpus = recipe("corpus")
    assert corpus.SHIPPED.read_text(encoding="utf-8") == corpus.corpus_lines()


def test_the_shipped_corpus_is_held_out_and_loads() -> None:
    corpus = recipe("corpus")
    samples = load_corpus("demo-tasks").samples
    asked = tasks.sample_held_out(corpus.EACH, corpus.SEED, corpus.ASKED)
    assert [sample.expected for sample in samples] == [task.answer for task in asked]
    assert all(task.held_out for task in asked)
    assert len({sample.text for sample in samples}) == len(samples) == len(corpus.ASKED) * corpus.EACH
    assert load_corpus("demo-tasks").hash == corpus_hash(samples)


def test_nothing_learnt_by_heart_asks_what_is_held_out() -> None:
    asked = {sample.text for sample in load_corpus("demo-tasks").samples}
    asked |= {task.turns[-1]["content"] for task in tasks.sample_held_out(40, 7)}
    by_heart = [task for task in text.learnt() if len(task.turns) == 1]
    assert len(by_heart) > 300
    assert not asked & {task.turns[0]["content"] for task in by_heart}
    sums = {tuple(sorted(map(int, found))) for found in _sums(by_heart)}
    assert sums
    assert not any(tasks.is_held_out(f"add {list(pair)}") for pair in sums)
    assert all(factor < 13 for task in by_heart if task.kind == "table" for factor in _numbers(task))


def _sums(by_heart: list[object]) -> list[tuple[str, str]]:
    return [found for task in by_heart for found in re.findall(r"(\d+) \+ (\d+)", str(task))]


def _numbers(task: object) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", getattr(task, "turns")[0]["content"])]  # noqa: B009


@needs_tokenizers
def test_training_rows_hold_no_held_out_task_and_learn_only_answers() -> None:
    from_file = importlib.import_module("tokenizers").Tokenizer.from_file
    tokenizer = from_file(str(FOLDER / "good" / "tokenizer.json"))
    batches = recipe("batches")
    rows = batches.Rows(tokenizer, 3)
    row = rows.row("<|user|>2 + 2 =<|end|><|assistant|>4<|end|>")
    assert [tokenizer.id_to_token(row.ids[place + 1]) for place in row.learnt] == ["4", "<|end|>"]
    held_out = next(task for task in tasks.sample_held_out(1, 1))
    with pytest.raises(ValueError, match="held-out"):
        rows._conversation([held_out])
    batch = next(rows.batches(1024))
    assert batch.tokens.size <= 1400
    assert len(batch.places) == len(batch.following) == len(batch.weights)


@needs_tokenizers
def test_digits_are_single_tokens_and_text_survives() -> None:
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(
        str(FOLDER / "good" / "tokenizer.json")
    )
    said = 'Größe 2048 → {"level":17} <tool_call>'
    assert tokenizer.decode(tokenizer.encode(said).ids, skip_special_tokens=True) == said
    assert [tokenizer.id_to_token(token) for token in tokenizer.encode("2048").ids] == list("2048")

    for path in sorted(Path(FOLDER, "recipe").glob("*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path

from __future__ import annotations

import http.client
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.factories.demo_model import FOLDER, recipe
from tests.factories.model_server import ModelServer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="needs the extra 'demo'")

CHECKPOINTS = ("good", "early")
RECORD: Any = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
MIB = 1 << 20


def _header(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    header: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    del header["__metadata__"]
    return header


def _score(name: str) -> Any:  # noqa: ANN401 - scripts without stubs
    """Return how a checkpoint answers the sample that its record speaks of."""
    check, tasks = recipe("check"), recipe("tasks")
    model, tokenizer = check.load(FOLDER / name)
    each = RECORD["checkpoints"][name]["held_out"]["n"] // len(tasks.KINDS)
    return check.score(model, tokenizer, tasks.sample_held_out(each, RECORD["seed"]))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_are_few_and_bfloat16_on_disk(name: str) -> None:
    tensors = _header(FOLDER / name / "model.safetensors")
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    sizes = [tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors.values()]
    assert sum(sizes) // 2 <= 2_900_000


def test_both_together_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12 * MIB


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_mlx_lm_loads_it_whole_with_its_fences(name: str) -> None:
    model, tokenizer = importlib.import_module("mlx_lm").load(str(FOLDER / name))[:2]
    assert model.args.max_position_embeddings == 2048
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids("<|end|>")}
    assert tokenizer.has_tool_calling
    assert len(tokenizer.encode("<tool_call>", add_special_tokens=False)) == 1


def test_the_template_gives_what_was_trained_on() -> None:
    tokenizer = importlib.import_module("mlx_lm").load(str(FOLDER / "good"))[1]
    vocabulary = recipe("vocabulary")
    for task in recipe("tasks").sample_held_out(2, 4):
        turns, tools = list(task.turns), list(task.tools)
        given = tokenizer.apply_chat_template(
            turns, tools=tools or None, add_generation_prompt=True, tokenize=False
        )
        assert given == vocabulary.render(turns, tools, prompt=True)
        assert given.endswith("<|assistant|>")


@pytest.mark.timeout(240)
def test_good_is_mostly_right_about_what_it_never_saw_as_its_record_says() -> None:
    found = _score("good")
    told = [f"{task.kind}: {task.turns[-1]['content']!r} -> {said!r}" for task, said in found.wrong]
    assert found.asked.total() >= 600
    assert found.accuracy >= 0.9, told
    # Floats are summed in another order elsewhere, which now and then turns an answer.
    assert found.accuracy == pytest.approx(RECORD["checkpoints"]["good"]["held_out"]["accuracy"], abs=0.01)


@pytest.mark.timeout(240)
def test_early_is_clearly_worse() -> None:
    assert _score("early").accuracy <= RECORD["checkpoints"]["good"]["held_out"]["accuracy"] - 0.2


def test_a_server_answers_and_calls_a_tool(tmp_path: Path) -> None:
    with ModelServer(FOLDER / "good", tmp_path / "server.log") as server:
        plain = _chat(server, {"messages": [{"role": "user", "content": "Repeat exactly: red boat key"}]})
        called = _chat(
            server,
            {
                "messages": [{"role": "user", "content": "What is 512 * 43?"}],
                "tools": list(recipe("tasks").TOOLS),
            },
        )
    assert plain["message"]["content"] == "red boat key"
    assert called["finish_reason"] == "tool_calls"
    function = called["message"]["tool_calls"][0]["function"]
    assert function["name"] == "calculator"
    assert json.loads(function["arguments"]) == {"expression": "512 * 43"}


def _chat(server: ModelServer, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    body = {"model": server.model, "max_tokens": 48, "temperature": 0.0, **body}
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        return json.loads(connection.getresponse().read())["choices"][0]
    finally:
        connection.close()

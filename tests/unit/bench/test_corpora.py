from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.bench.corpora import SHIPPED, load_corpus, shipped_prose
from tokenweir.bench.corpora.traces import load_trace
from tokenweir.core.corpus import Sample, corpus_hash
from tokenweir.core.errors import CorpusError
from tokenweir.core.requests import Message, ToolCall


def _file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_shipped_corpus_is_whole_and_varied() -> None:
    corpus = load_corpus("weir-mix")
    assert SHIPPED == ("weir-mix", "demo-tasks")
    assert len(corpus) >= 110
    assert len({sample.id for sample in corpus.samples}) == len(corpus)
    assert len({sample.text for sample in corpus.samples}) == len(corpus)
    assert all(sample.max_tokens for sample in corpus.samples)
    families = Counter(sample.id.partition("-")[0] for sample in corpus.samples)
    assert set(families) == {"sum", "fact", "json", "explain", "code", "read", "write", "talk"}
    assert sum(sample.expected is not None for sample in corpus.samples) > 50
    assert sum(sample.turns > 1 for sample in corpus.samples) >= 8
    assert corpus.hash == corpus_hash(corpus.samples)


def test_shipped_answers_in_json_are_json() -> None:
    for sample in load_corpus("weir-mix").samples:
        if sample.id.startswith("json-") and sample.expected is not None:
            json.loads(sample.expected)


def test_shipped_prose_is_plain_and_licensed() -> None:
    assert len(shipped_prose()) > 25_000
    assert shipped_prose().isascii()
    licence = resources.files("tokenweir.bench.corpora").joinpath("data", "weir-mix.LICENSE.md").read_text()
    assert "CC0 1.0" in licence


def test_text_has_one_prompt_per_line(tmp_path: Path) -> None:
    corpus = load_corpus(_file(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n\n  two  \n\nthree"))
    assert corpus.name == "a.txt"
    assert [(sample.id, sample.prompt) for sample in corpus.samples] == [
        ("1", "one"),
        ("3", "two"),
        ("5", "three"),
    ]


def test_hash_is_of_the_content_and_not_of_the_name(tmp_path: Path) -> None:
    first, second = (load_corpus(_file(tmp_path, name, "one\ntwo")) for name in ("a.txt", "b.txt"))
    assert first.hash == second.hash
    assert first.hash != load_corpus(_file(tmp_path, "c.txt", "two\none")).hash


def test_jsonl_holds_prompts_and_conversations(tmp_path: Path) -> None:
    lines = [
        {"prompt": "p", "id": 7, "max_tokens": 3, "expected": "e", "source": "ignored"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": "r"},
            ]
        },
    ]
    corpus = load_corpus(_file(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n"))
    assert corpus.samples[0] == Sample(id="7", prompt="p", max_tokens=3, expected="e")
    assert corpus.samples[1] == Sample(id="3", messages=(Message(role="user", content="q"),), expected="a")
    asked = corpus.samples[2].messages
    assert [message.role for message in asked] == ["user", "assistant", "tool"]
    assert asked[1].tool_calls == (ToolCall(id="c", name="f", arguments="{}"),)
    assert not corpus.sized_by_replies


def test_sharegpt_is_asked_up_to_its_last_question(tmp_path: Path) -> None:
    talks = [
        {
            "id": "x",
            "conversations": [
                {"from": "human", "value": "q1"},
                {"from": "gpt", "value": "a1"},
                {"from": "human", "value": "q2"},
                {"from": "gpt", "value": "a2"},
            ],
        },
        {"conversations": [{"from": "gpt", "value": "only an answer"}]},
        {"conversation": [{"from": "system", "value": "s"}, {"from": "user", "value": "q"}]},
    ]
    corpus = load_corpus(_file(tmp_path, "a.json", json.dumps(talks)))
    assert [sample.id for sample in corpus.samples] == ["x", "3"]
    assert [message.content for message in corpus.samples[0].messages] == ["q1", "a1", "q2"]
    assert corpus.samples[0].expected == "a2"
    assert corpus.samples[1].messages[0].role == "system"
    assert corpus.sized_by_replies


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": ', "a.jsonl:3: "),
        ("a.jsonl", '{"prompt": 5}', "a.jsonl:1: expected `str | null`, got `int`"),
        ("a.jsonl", "{}", "a.jsonl:1: neither prompt nor messages"),
        (
            "a.jsonl",
            '{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}',
            "both prompt and messages",
        ),
        ("a.jsonl", '{"prompt": "  "}', "a.jsonl:1: the prompt is empty"),
        ("a.jsonl", '{"prompt": "x", "max_tokens": 0}', "max_tokens 0 is below 1"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "y"}]}', "no message has the role user"),
        ("a.jsonl", b'{"prompt": "\xff"}', "a.jsonl:1: "),
        ("a.jsonl", "", "holds no sample"),
        ("a.txt", b"good\nb\xffd", "a.txt:2: byte 0xff is no UTF-8"),
        ("a.txt", "\n \n", "holds no sample"),
        ("a.json", '{"a": 1}', "not a JSON list of conversations"),
        ("a.json", '[{"conversations": 5}]', "entry 1: "),
        (
            "a.json",
            '[{"conversations": [{"from": "cat", "value": "miau"}]}]',
            "entry 1: unknown speaker 'cat'",
        ),
        ("a.csv", "a,b", "unknown ending '.csv'"),
    ],
)
def test_bad_corpus_names_file_line_and_reason(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(CorpusError) as caught:
        load_corpus(_file(tmp_path, name, content))
    assert name in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_corpus_names_the_nearest() -> None:
    with pytest.raises(CorpusError, match=r"did you mean weir-mix\?"):
        load_corpus("wier-mix")
    with pytest.raises(CorpusError, match="shipped is weir-mix, demo-tasks"):
        load_corpus("/nowhere/at/all.txt")


def test_a_folder_is_no_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "x.txt"
    folder.mkdir()
    with pytest.raises(CorpusError, match="directory"):
        load_corpus(str(folder))


@given(st.binary(max_size=80))
def test_any_bytes_give_samples_or_a_corpus_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a.txt", "a.jsonl", "a.json"):
        try:
            corpus = load_corpus(_file(folder, name, raw))
        except CorpusError as error:
            assert name in error.message  # noqa: PT017 - either outcome is right
        else:
            assert len(corpus) > 0


def test_a_worded_trace_keeps_the_recorded_lengths_of_answers(tmp_path: Path) -> None:
    lines = (
        '{"timestamp": 0, "prompt": "a", "output_length": 7}',
        '{"timestamp": 1, "prompt": "b", "output_length": 7, "max_tokens": 5}',
        '{"timestamp": 2, "prompt": "c"}',
    )
    found = load_trace(_file(tmp_path, "t.jsonl", "\n".join(lines)))
    assert [sample.max_tokens for sample in found.samples] == [7, 5, None]


def test_trace_holds_lengths_or_text(tmp_path: Path) -> None:
    lengths = load_trace(
        _file(
            tmp_path,
            "l.jsonl",
            '{"timestamp": 2, "input_length": 9}\n{"timestamp": 1, "input_length": 8, "output_length": 3}',
        )
    )
    assert lengths.times_ns.tolist() == [0, 1e6]
    assert lengths.input_tokens.tolist() == [8, 9]
    assert lengths.output_tokens.tolist() == [3, -1]
    assert lengths.samples == ()
    worded = load_trace(
        _file(
            tmp_path,
            "w.jsonl",
            '{"timestamp": 5, "prompt": "b"}\n{"timestamp": 1, "prompt": "a", "max_tokens": 4}',
        )
    )
    assert [sample.prompt for sample in worded.samples] == ["a", "b"]
    assert worded.output_tokens.tolist() == [4, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no request"),
        ('{"input_length": 5}', "timestamp"),
        ('{"timestamp": 1}', "neither input_length nor prompt nor messages"),
        ('{"timestamp": 1, "input_length": 0}', "input_length 0 is below 1"),
        ('{"timestamp": 1, "input_length": 3, "output_length": 0}', "output_length 0 is below 1"),
        (
            '{"timestamp": 1, "input_length": 3}\n{"timestamp": 2, "prompt": "x"}',
            "t.jsonl:1: other lines hold text",
        ),
    ],
)
def test_bad_trace_names_line_and_reason(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(CorpusError) as caught:
        load_trace(_file(tmp_path, "t.jsonl", content))
    assert message in str(caught.value)

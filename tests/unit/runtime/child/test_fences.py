from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.requests import Tool
from tokenweir.ports.inference import Markers
from tokenweir.runtime.child.fences import FenceReader, Parts, joined
from tokenweir.runtime.engines.sim_tokens import SimToolCalls

MARKERS = Markers(think=("<think>", "</think>"), tool=("<tool_call>", "</tool_call>"))
TOOLS = (Tool(name="add"),)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def read(pieces: list[str], *, tools: tuple[Tool, ...] = TOOLS, reasoning: bool = False) -> Parts:
    reader = FenceReader(MARKERS, tools, SimToolCalls(), reasoning=reasoning)
    parts = [reader.feed(piece) for piece in pieces] + [reader.finish()]
    return Parts(
        "".join(part.text for part in parts),
        "".join(part.reasoning for part in parts),
        joined([call for part in parts for call in part.calls]),
    )


def plain(parts: Parts) -> tuple[str, str, list[tuple[int, str, str]]]:
    return parts.text, parts.reasoning, [(call.index, call.name, call.arguments) for call in parts.calls]


Case = tuple[str, tuple[str, str, list[tuple[int, str, str]]]]
CASES: list[Case] = [
    ("Four.", ("Four.", "", [])),
    (" lake rain\n", (" lake rain\n", "", [])),
    ("\n\n", ("\n\n", "", [])),
    ("<think>\ntwo and two\n</think>\n\nFour.", ("Four.", "two and two\n", [])),
    ("<think>never ends", ("", "never ends", [])),
    ("a <think> b </think>", ("a <think> b </think>", "", [])),
    (CALL, ("", "", [(0, "add", '{"a": 1}')])),
    (
        f"Let me see.\n{CALL}\n{CALL}\n",
        ("Let me see.", "", [(0, "add", '{"a": 1}'), (1, "add", '{"a": 1}')]),
    ),
    (f"<think>hm</think>\n\n{CALL}", ("", "hm", [(0, "add", '{"a": 1}')])),
    (f"{CALL} and so on", (" and so on", "", [(0, "add", '{"a": 1}')])),
    ("x <tool_call>no json</tool_call> y", ("x <tool_call>no json</tool_call> y", "", [])),
    ("x <tool_call>cut sho", ("x <tool_call>cut sho", "", [])),
    ('<tool_call>{"name": "add", "arguments": {"a": 1}}', ("", "", [(0, "add", '{"a": 1}')])),
    ('<tool_call>{"name": "add", "arguments": {"a": ', ("", "", [(0, "add", '{"a": ')])),
    ("a < b <too", ("a < b <too", "", [])),
]


@pytest.mark.parametrize(("answer", "expected"), CASES)
def test_an_answer_is_told_apart_however_it_is_cut(
    answer: str, expected: tuple[str, str, list[tuple[int, str, str]]]
) -> None:
    assert plain(read([answer])) == expected
    assert plain(read(list(answer))) == expected
    for size in (2, 3, 7):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert plain(read(pieces)) == expected


@given(st.text(alphabet="a <>/\n", max_size=40), st.integers(1, 9))
def test_text_without_fences_comes_out_as_it_was(text: str, size: int) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert plain(read(pieces)) == (text, "", [])
    assert plain(read(pieces, tools=())) == (text, "", [])


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    assert plain(read(list("\nhm</think>\n\nFour."), reasoning=True)) == ("Four.", "hm", [])


def test_without_tools_a_fence_is_text() -> None:
    assert plain(read(list(CALL), tools=())) == (CALL, "", [])


def test_a_format_without_a_closing_fence_ends_with_the_answer() -> None:
    markers = Markers(tool=("[CALLS]", ""))
    reader = FenceReader(markers, TOOLS, SimToolCalls())
    parts = [reader.feed(letter) for letter in 'ok[CALLS][{"arguments": {}, "name": "add"}]'] + [
        reader.finish()
    ]
    assert "".join(part.text for part in parts) == "ok"
    assert [call.name for part in parts for call in part.calls] == ["add"]


def test_text_is_passed_on_as_it_comes() -> None:
    reader = FenceReader(MARKERS, TOOLS, SimToolCalls())
    assert [reader.feed(piece).text for piece in ("One", " two", " <to", "p>", " three")] == [
        "One",
        " two",
        "",
        " <top>",
        " three",
    ]

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.requests import Json, Tool, ToolCall
from tokenweir.runtime.child.fences import joined
from tokenweir.runtime.child.tool_calls import ObjectEnd, ToolCallReader
from tokenweir.runtime.engines.sim_tokens import SimToolCalls

TOOLS = (Tool(name="look_up"), Tool(name="add"))
values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=4)


def pieces(text: str, places: list[int]) -> list[str]:
    edges = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(edges)]


def read(parts: list[str]) -> tuple[ToolCall, ...]:
    reader = ToolCallReader(TOOLS, SimToolCalls(), 0)
    found = [call for part in parts for call in reader.feed(part)]
    return joined([*found, *reader.close()])


@given(objects, st.lists(st.integers(0, 200)), st.sampled_from([None, 1]))
def test_a_call_comes_out_whole_however_it_is_cut(
    arguments: dict[str, Json], places: list[int], indent: int | None
) -> None:
    text = json.dumps({"name": "look_up", "arguments": arguments}, indent=indent)
    (call,) = read(pieces(f"\n{text}\n", places))
    assert (call.index, call.name) == (0, "look_up")
    assert call.id.startswith("call_")
    assert json.loads(call.arguments) == arguments


@given(objects)
def test_the_end_of_an_object_is_where_json_says(value: dict[str, Json]) -> None:
    text = json.dumps(value)
    end = ObjectEnd()
    places = [end.feed(letter) for letter in text]
    assert places == [-1] * (len(text) - 1) + [1]
    assert ObjectEnd().feed(text + '} , "x"') == len(text)


def test_the_name_comes_before_the_arguments() -> None:
    reader = ToolCallReader(TOOLS, SimToolCalls(), 2)
    assert reader.feed('{"name": "ad') == []
    (named,) = reader.feed('d", "arguments": {')[:1]
    assert (named.index, named.name, named.arguments) == (2, "add", "")
    (more,) = reader.feed('"a": 1}}')
    assert (more.index, more.id, more.name, more.arguments) == (2, "", "", '"a": 1}')
    assert reader.close() == []


def test_several_calls_in_one_fence_are_told_apart() -> None:
    text = '[{"name": "add", "arguments": {"a": 1}}, {"name": "look_up", "parameters": {"q": "}"}}]'
    calls = read(list(text))
    assert [(call.index, call.name, call.arguments) for call in calls] == [
        (0, "add", '{"a": 1}'),
        (1, "look_up", '{"q": "}"}'),
    ]
    assert calls[0].id != calls[1].id


def test_another_order_of_members_is_left_to_the_models_format() -> None:
    (call,) = read(list('{"arguments": {"a": 1}, "name": "add"}'))
    assert (call.name, call.arguments) == ("add", '{"a":1}')


def test_what_names_no_tool_is_no_call() -> None:
    reader = ToolCallReader(TOOLS, SimToolCalls(), 0)
    text = '{"name": "format_disk", "arguments": {}}'
    assert [call for letter in text for call in reader.feed(letter)] == []
    assert reader.close() == []
    assert (reader.calls, reader.inside) == (0, text)

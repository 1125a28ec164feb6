from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: needs the extra 'runtime'")

from tests.factories.language_models import TOOL_TEMPLATE, edit_json, random_llama

from tokenweir.core.errors import InputError, ParameterError, ProtocolError
from tokenweir.core.requests import Message, Tool, ToolCall
from tokenweir.runtime.engines.mlx.fences import think_fence, tool_calls
from tokenweir.runtime.engines.mlx.template import ChatTemplate
from tokenweir.runtime.engines.mlx.text import MlxText

WEATHER = Tool(name="weather", description="Tells it.", parameters={"type": "object", "properties": {}})
HELLO = (Message(role="user", content="Hello"),)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return random_llama(tmp_path / "m", template=TOOL_TEMPLATE)


def rendered(source: str, *messages: Message, tools: tuple[Tool, ...] = (), **options: bool) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, "m").render(messages, tools, options)


def test_messages_become_the_prompt_of_the_template(directory: Path) -> None:
    text = MlxText(directory)
    assert text.render(HELLO, (), {}) == "<|user|>Hello<|end|><|assistant|>"
    assert text.render(HELLO, (), {"add_generation_prompt": False}) == "<|user|>Hello<|end|>"
    assert '"name": "weather"' in text.render(HELLO, (WEATHER,), {})


def test_a_template_has_what_templates_expect() -> None:
    source = (
        "{{ bos_token }}{% generation %}{{ messages[0].content }}{% endgeneration %}"
        "{% for n in [1, 2, 3] %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}"
        "{{ {'a': '<é&>'} | tojson }}{% if strftime_now('%Y') | length == 4 %}!{% endif %}"
    )
    assert rendered(source, *HELLO) == '<s>Hello1{"a": "<é&>"}!'


def test_calls_and_answers_of_tools_are_told_as_openai_tells_them() -> None:
    call = ToolCall(id="1", name="weather", arguments='{"city": "Ulm"}')
    source = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
    lines = rendered(
        source,
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="rain", tool_call_id="1", name="weather"),
    ).splitlines()
    first, second = map(json.loads, lines)
    assert first["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Ulm"}}
    assert second == {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "1"}


def test_contents_in_parts_are_text_for_a_template_that_does_not_see() -> None:
    parts = Message(role="user", content=({"type": "text", "text": "a"}, {"type": "text", "text": "b"}))
    assert rendered("{{ messages[0].content }}", parts) == "ab"
    seeing = "{% for p in messages[0].content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
    image = Message(
        role="user", content=({"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "b"})
    )
    assert rendered(seeing, image) == "<image>b"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ().__class__.__mro__ }}", "refuses"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_a_template_that_refuses_or_fails_or_breaks_out_is_the_request_s_error(
    source: str, said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        rendered(source, *HELLO)


def test_messages_and_tools_are_no_options() -> None:
    with pytest.raises(ParameterError, match="'messages' is not free"):
        rendered("{{ messages }}", *HELLO, messages=True)


def test_a_template_that_is_none_is_refused_at_load() -> None:
    with pytest.raises(InputError, match="chat template of m cannot be read"):
        ChatTemplate("{% for %}", {}, "m")


def test_a_model_without_a_template_says_so(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", chat_template=None)
    text = MlxText(directory)
    assert not text.has_template
    with pytest.raises(ParameterError, match="no chat template"):
        text.render(HELLO, (), {})


def test_the_beginning_is_added_as_the_settings_say(directory: Path) -> None:
    plain = list(MlxText(directory).encode("river"))
    edit_json(directory / "tokenizer_config.json", add_bos_token=True)
    text = MlxText(directory)
    assert list(text.encode("river")) == [0, *plain]
    assert list(text.encode("river", special=False)) == plain


def test_what_ends_an_answer_is_gathered_from_the_files(directory: Path) -> None:
    assert MlxText(directory).stop_tokens == {0}
    edit_json(directory / "generation_config.json", eos_token_id=[5, 6])
    assert MlxText(directory).stop_tokens == {0, 5, 6}
    (directory / "generation_config.json").unlink()
    edit_json(directory / "config.json", eos_token_id=7)
    assert MlxText(directory).stop_tokens == {0, 7}


def test_a_model_that_calls_tools_has_its_fences(directory: Path) -> None:
    text = MlxText(directory)
    assert text.markers().tool == ("<tool_call>", "</tool_call>")
    assert text.tool_calls is not None
    call = '\n{"name": "weather", "arguments": {"city": "Ulm"}}\n'
    assert text.tool_calls.parse(call, (WEATHER,)) == [("weather", '{"city": "Ulm"}')]


@pytest.mark.parametrize("text", ["", "{", '["name"]', '{"arguments": {}}', '{"name": 5}'])
def test_what_is_no_call_is_an_error(directory: Path, text: str) -> None:
    format_ = MlxText(directory).tool_calls
    assert format_ is not None
    with pytest.raises(ProtocolError, match="no tool call"):
        format_.parse(text, (WEATHER,))


@pytest.mark.parametrize(
    ("template", "fence", "text"),
    [
        (
            "<tool_call>\n<function=f>",
            "<tool_call>",
            "<function=weather>\n<parameter=city>\nUlm\n</parameter>\n</function>",
        ),
        ("[TOOL_CALLS]", "[TOOL_CALLS]", '[{"name": "weather", "arguments": {"city": "Ulm"}}]'),
        ("<|tool_call_start|>", "<|tool_call_start|>", '[weather(city="Ulm")]'),
        ("<longcat_tool_call>", "<longcat_tool_call>", '{"name": "weather", "arguments": {"city": "Ulm"}}'),
    ],
)
def test_the_formats_of_several_families_are_known_by_their_templates(
    template: str, fence: str, text: str
) -> None:
    found = tool_calls(template, {}, {})
    assert found is not None
    assert found.fence[0] == fence
    tool = Tool(name="weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
    ((name, arguments),) = found.parse(text, (tool,))
    assert (name, json.loads(arguments)) == ("weather", {"city": "Ulm"})


def test_a_template_without_a_known_format_calls_no_tools() -> None:
    assert tool_calls("{{ messages }}", {}, {}) is None


def test_reasoning_is_fenced_by_tokens_of_the_vocabulary() -> None:
    assert think_fence({"<think>": 1, "</think>": 2}) == ("<think>", "</think>")
    assert think_fence({"<think>": 1}) == ("", "")

from __future__ import annotations

import pytest

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json, Kind, Message, Tool, ToolCall
from tokenweir.ports.inference import Guidance
from tokenweir.runtime.normalise.loading import LoadAsk, loading
from tokenweir.runtime.normalise.requests import COMPLETION_TOKENS, Ask, normalise

SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "integer"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'
CALL: Json = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOL: Json = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def chat(**options: Json) -> Ask:
    return normalise("chat", {"messages": [{"role": "user", "content": "hi"}], **options})


def refused(kind: Kind, body: dict[str, Json]) -> str:
    with pytest.raises(ParameterError) as caught:
        normalise(kind, body)
    return caught.value.param


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", -2),
        ("n", 0),
        ("n", 65),
        ("n", 1.5),
        ("max_tokens", 0),
        ("stop", ["a", ""]),
        ("stop", ["x"] * 17),
        ("stop", {"a": 1}),
        ("seed", 1 << 64),
        ("logit_bias", {"word": 1}),
        ("logit_bias", {"5": 101}),
        ("priority", 3),
        ("timeout", "soon"),
        ("timeout", 0),
        ("kv_bits", 5),
        ("kv_bits", [4]),
        ("stream", "yes"),
        ("model", 5),
        ("top_logprobs", 3),
        ("tools", [TOOL, TOOL]),
        ("tool_choice", "required"),
        ("stream_options", {"include_usage": True}),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(option: str, value: Json) -> None:
    assert refused("chat", {"messages": [{"role": "user", "content": "hi"}], option: value}) == option


def test_whole_floats_are_whole_numbers() -> None:
    assert chat(max_tokens=5.0).requests[0].sampling.max_tokens == 5


def test_what_lm_studio_switches_off_with_false_is_off() -> None:
    ask = chat(maxTokens=False, topPSampling=False, minPSampling=False, repeatPenalty=False, logProbs=False)
    assert ask.requests[0].sampling.max_tokens is None
    assert ask.requests[0].sampling.top_p == 1.0
    assert (ask.options.min_p, ask.options.repetition_penalty) == (0.0, 1.0)
    assert not ask.logprobs


def test_a_completion_has_openai_s_default_length_and_a_chat_none() -> None:
    assert normalise("completion", {"prompt": "x"}).requests[0].sampling.max_tokens == COMPLETION_TOKENS
    assert chat().requests[0].sampling.max_tokens is None


def test_fewer_tokens_than_the_least_are_refused() -> None:
    body: dict[str, Json] = {"prompt": "x", "min_tokens": 9, "max_tokens": 8}
    assert refused("completion", body) == "min_tokens"


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 5}, 5),
        ({"logprobs": 4}, 4),
        ({"logProbs": 4}, 4),
    ],
)
def test_log_probabilities_are_asked_for_in_every_way(options: dict[str, Json], count: int | None) -> None:
    ask = chat(**options)
    assert ask.requests[0].sampling.logprobs == count
    assert ask.logprobs == (count is not None)


def test_a_completion_takes_mlx_engine_s_top_logprobs_alone() -> None:
    ask = normalise("completion", {"prompt": "x", "top_logprobs": 2})
    assert ask.requests[0].sampling.logprobs == 2


def test_messages_become_turns() -> None:
    ask = normalise(
        "chat",
        {
            "messages": [
                {"role": "developer", "content": "be brief"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    "name": "Z",
                },
                {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None},
                {"role": "tool", "content": "12", "tool_call_id": "call_1"},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
        },
    )
    call = ToolCall(index=0, id="call_1", name="look", arguments="{}")
    assert ask.requests[0].messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="a\nb", name="Z"),
        Message(role="assistant", content=None, tool_calls=(call,)),
        Message(role="tool", content="12", tool_call_id="call_1"),
    )
    assert ask.requests[0].tools == (Tool(name="look", parameters={"type": "object"}),)
    assert ask.requests[0].tool_choice == {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": "x", "mood": "good"}, "messages[0].mood"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "messages[0].tool_calls[0].function"),
        ("hello", "messages[0]"),
    ],
)
def test_a_bad_turn_is_refused_where_it_is_bad(message: Json, param: str) -> None:
    assert refused("chat", {"messages": [message]}) == param


@pytest.mark.parametrize(
    ("kind", "body", "reason", "said"),
    [
        ("chat", {}, "missing_required_parameter", "there are no messages; send a list of turns"),
        ("chat", {"messages": None}, "missing_required_parameter", "there are no messages"),
        ("chat", {"messages": []}, "missing_required_parameter", "there are no messages"),
        (
            "chat",
            {"messages": "hi"},
            "invalid_value",
            "'messages' is 'hi'; it must be a list of turns, such as [{",
        ),
        ("chat", {"messages": ""}, "invalid_value", "'messages' is ''; it must be a list of turns"),
        ("chat", {"messages": {"role": "user"}}, "invalid_value", "it must be a list of turns"),
        (
            "completion",
            {"prompt": {"a": 1}},
            "invalid_value",
            "'prompt' is {'a': 1}; it must be a text, a list of",
        ),
        ("embedding", {"input": 5}, "invalid_value", "'input' is 5; it must be a text, or a list of"),
        ("embedding", {"input": [5]}, "invalid_value", "'input' is [5]; it must be made of texts"),
    ],
)
def test_what_is_no_prompt_is_told_as_what_it_is(
    kind: Kind, body: dict[str, Json], reason: str, said: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        normalise(kind, body)
    assert (caught.value.param, caught.value.reason) == (
        {"chat": "messages", "completion": "prompt", "embedding": "input"}[kind],
        reason,
    )
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "guidance"),
    [
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            Guidance(kind="json_schema", value='{"type":"object"}'),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            Guidance(kind="json_schema", value=SCHEMA_TEXT),
        ),
        ({"guided_json": SCHEMA}, Guidance(kind="json_schema", value=SCHEMA_TEXT)),
        ({"json_schema": SCHEMA_TEXT}, Guidance(kind="json_schema", value=SCHEMA_TEXT)),
        ({"guided_regex": "a+"}, Guidance(kind="regex", value="a+")),
        ({"guided_choice": ["a", "b"]}, Guidance(kind="choice", value='["a","b"]')),
        ({"guided_grammar": "start: /a/"}, Guidance(kind="grammar", value="start: /a/")),
        ({"structured_outputs": {"choice": ["a"]}}, Guidance(kind="choice", value='["a"]')),
        ({"structured_outputs": {"json": SCHEMA}}, Guidance(kind="json_schema", value=SCHEMA_TEXT)),
        (
            {"structured_outputs": {"json_object": True}},
            Guidance(kind="json_schema", value='{"type":"object"}'),
        ),
        (
            {"structured": {"type": "json", "jsonSchema": SCHEMA}},
            Guidance(kind="json_schema", value=SCHEMA_TEXT),
        ),
        ({"structured": {"type": "none"}}, None),
        (
            {"guided_json": SCHEMA, "structured_outputs": {"json": SCHEMA}},
            Guidance(kind="json_schema", value=SCHEMA_TEXT),
        ),
    ],
)
def test_what_an_answer_must_match_is_said_in_every_way(
    options: dict[str, Json], guidance: Guidance | None
) -> None:
    assert chat(**options).options.guidance == guidance


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object", "strict": True}},
        {"response_format": "json"},
        {"guided_json": "{not json"},
        {"guided_json": 5},
        {"guided_regex": ""},
        {"guided_choice": []},
        {"guided_choice": ["a", 5]},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"structured_outputs": {}},
        {"structured": {"type": "gbnf", "gbnfGrammar": "root ::= x"}},
        {"guided_regex": "a", "guided_choice": ["a"]},
        {"response_format": {"type": "json_object"}, "guided_json": SCHEMA},
    ],
)
def test_what_cannot_be_matched_or_contradicts_is_refused(options: dict[str, Json]) -> None:
    with pytest.raises(ParameterError) as caught:
        chat(**options)
    assert caught.value.param.partition(".")[0] in options


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("x", 1), ([1, 2], 1), (["x", "y"], 2), ([[1], [2, 3], [4]], 3)],
)
def test_prompts_of_every_form(prompt: Json, count: int) -> None:
    assert len(normalise("completion", {"prompt": prompt}).requests) == count


@pytest.mark.parametrize("prompt", [[], 5, [[]], ["x"] * 65, [True], [-1], {"a": 1}])
def test_prompts_of_no_form_are_refused(prompt: Json) -> None:
    assert refused("completion", {"prompt": prompt}) == "prompt"


@pytest.mark.parametrize("given", [[], [""], 5, [[1, 2]], None])
def test_inputs_of_no_form_are_refused(given: Json) -> None:
    assert refused("embedding", {"input": given}) == "input"


def test_a_draft_that_is_named_and_forbidden_is_refused() -> None:
    messages: Json = [{"role": "user", "content": "x"}]
    body: dict[str, Json] = {"messages": messages, "draftModel": "d", "use_draft": False}
    assert refused("chat", body) == "use_draft"
    assert chat(draftModel="d").options.use_draft
    assert chat(draftModel="d").draft_model == "d"


@pytest.mark.parametrize(
    "body",
    [
        {"path": "/m", "name": "x", "quantize": 4, "contextLength": 100, "draftModel": "/d"},
        {
            "modelPath": "/m",
            "modelName": "x",
            "weight_bits": 4,
            "max_kv_size": 100,
            "draft": "/d",
            "vocab_only": False,
        },
        {"model": "/m", "identifier": "x", "quantise": 4, "n_ctx": 100, "draft_path": "/d"},
    ],
)
def test_loading_is_said_in_every_way(body: dict[str, Json]) -> None:
    assert loading(body) == LoadAsk(path="/m", name="x", weight_bits=4, context_tokens=100, draft="/d")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "path"),
        ({"path": "/m", "quantise": 5}, "quantise"),
        ({"path": "/m", "draft": "/a", "draft_model": "/b"}, "draft_model"),
        ({"path": "/m", "draft": ["/a", "/b"]}, "draft"),
        ({"path": "/m", "trust_remote_code": True}, "trust_remote_code"),
        ({"path": "/m", "kv_bits": 4}, "kv_bits"),
        ({"path": "/m", "pathz": "/n"}, "pathz"),
    ],
)
def test_bad_loading_is_refused(body: dict[str, Json], param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        loading(body)
    assert caught.value.param == param

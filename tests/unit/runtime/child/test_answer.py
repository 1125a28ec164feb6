from __future__ import annotations

import math

import pytest

from tokenweir.core.events import Token
from tokenweir.core.requests import Tool
from tokenweir.ports.inference import Drawn
from tokenweir.runtime.child.answer import LEAST_LOGPROB, AnswerRules, Choice, FinishReason, TokenTexts
from tokenweir.runtime.engines.sim_tokens import SimFormat, SimToolCalls, encode

FORM = SimFormat()


def choice(rules: AnswerRules = AnswerRules(), index: int = 0) -> Choice:  # noqa: B008 - it is frozen
    return Choice(index, rules, FORM, SimToolCalls(), TokenTexts(FORM))


def say(one: Choice, text: str, reason: FinishReason = "stop") -> list[Token]:
    found: list[Token | None] = []
    for token in encode(text):
        found.append(one.take(Drawn(sequence=1, token=token, logprob=-0.5, alternatives=((token, -0.5),)), 0))
        if one.finish:
            break
    found.append(one.end(one.finish or reason, 0))
    return [token for token in found if token is not None]


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


@pytest.mark.parametrize("text", [" lake rain", "wörld ☃ 😀", "<think>x</think> <tool_call>", "\x00\n"])
def test_plain_text_comes_out_as_it_was_and_every_token_is_counted(text: str) -> None:
    one = choice()
    tokens = say(one, text)
    assert text_of(tokens) == text
    assert sum(token.count or 0 for token in tokens) == one.output_tokens == len(encode(text))
    assert one.finish == "stop"


def test_half_a_character_is_replaced_at_the_end() -> None:
    one = choice()
    assert one.take(Drawn(sequence=1, token=encode("ö")[0]), 0) is None
    last = one.end("length", 7)
    assert last is not None
    assert (last.text, last.seq, last.count, one.finish) == ("�", 7, 1, "length")


def test_a_stop_string_ends_the_choice_and_is_left_out() -> None:
    one = choice(AnswerRules(stops=("STOP", "\n\n")))
    assert text_of(say(one, "one STOP two")) == "one "
    assert one.finish == "stop"
    assert one.output_tokens == len(encode("one STOP"))


def test_what_only_began_like_a_stop_string_is_said_at_the_end() -> None:
    one = choice(AnswerRules(stops=("STOP",), fenced=True))
    assert text_of(say(one, "one STO", "length")) == "one STO"
    assert one.finish == "length"


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    one = choice(AnswerRules(stops=("STOP",), logprobs=True))
    tokens = say(one, "STO☃ lake")
    told = [entry for token in tokens for entry in token.logprobs]
    assert len(told) == one.output_tokens == sum(token.count or 0 for token in tokens)
    assert [entry.token for entry in told][-1] == " lake"
    assert told[-1].top == ((" lake", -0.5),)
    assert all(len(token.logprobs) == token.count for token in tokens)


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e9])
def test_what_json_cannot_say_becomes_the_least(value: float) -> None:
    one = choice(AnswerRules(logprobs=True))
    token = one.take(
        Drawn(sequence=1, token=encode(" lake")[0], logprob=value, alternatives=((1, value),)), 0
    )
    assert token is not None
    assert token.logprobs[0].logprob == LEAST_LOGPROB
    assert token.logprobs[0].top[0][1] == LEAST_LOGPROB


def test_reasoning_is_counted_apart() -> None:
    one = choice(AnswerRules(fenced=True))
    tokens = say(one, "<think> lake rain</think> moss")
    assert "".join(token.reasoning for token in tokens) == "lake rain"
    assert text_of(tokens) == "moss"
    assert (one.reasoning_tokens, one.output_tokens) == (4, 5)


def test_a_tool_call_changes_why_it_ended() -> None:
    one = choice(AnswerRules(fenced=True, tools=(Tool(name="add"),)))
    tokens = say(one, '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    calls = [call for token in tokens for call in token.tool_calls]
    assert one.finish == "tool_calls"
    assert calls[0].name == "add"
    assert "".join(call.arguments for call in calls) == '{"a": 1}'
    cut = choice(AnswerRules(fenced=True, tools=(Tool(name="add"),)))
    say(cut, '<tool_call>{"name": "add", "arguments": {"a":', "length")
    assert cut.finish == "length"


def test_a_forced_call_of_one_tool_is_its_arguments() -> None:
    one = choice(AnswerRules(forced="add", tools=(Tool(name="add"),)))
    calls = [call for token in say(one, '{"a": 1}') for call in token.tool_calls]
    assert (calls[0].name, one.finish) == ("add", "tool_calls")
    assert all(not (call.id or call.name) for call in calls[1:])
    assert "".join(call.arguments for call in calls) == '{"a": 1}'


def test_a_forced_call_of_any_tool_names_it() -> None:
    tools = (Tool(name="add"), Tool(name="look_up"))
    one = choice(AnswerRules(forced="*", tools=tools))
    calls = [
        call for token in say(one, '{"name": "look_up", "arguments": {"a": 1}}') for call in token.tool_calls
    ]
    assert (calls[0].name, one.finish) == ("look_up", "tool_calls")
    assert "".join(call.arguments for call in calls) == '{"a": 1}'
    cut = choice(AnswerRules(forced="*", tools=tools))
    assert text_of(say(cut, '{"name": "lo', "length")) == '{"name": "lo'
    assert cut.finish == "length"


def test_the_index_of_the_choice_is_told() -> None:
    assert {token.index for token in say(choice(index=3), " lake rain")} == {3}

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ParameterError
from tokenweir.core.requests import Json, Kind
from tokenweir.runtime.normalise.names import camel, snake
from tokenweir.runtime.normalise.requests import normalise
from tokenweir.runtime.normalise.vocabulary import REQUESTS

TURNS: Json = [{"role": "user", "content": "hi"}]

VALUES: dict[str, Json] = {
    "max_tokens": 7,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 5,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
    "presence_penalty": 1.0,
    "frequency_penalty": -1.0,
    "logit_bias": {"5": 2},
    "stop": ["x"],
    "seed": 3,
    "n": 2,
    "ignore_eos": True,
    "logprobs": 3,
    "priority": "background",
    "timeout": 1.5,
    "kv_bits": 8,
    "use_draft": True,
    "draft_tokens": 4,
    "use_prefix_cache": False,
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["a", "b"],
    "guided_grammar": "start: /a/",
    "chat_template_kwargs": {"thinking": False},
}


def chat(**options: Json) -> dict[str, Json]:
    return {"model": "m", "messages": TURNS, **options}


def refusal(body: dict[str, Json]) -> ParameterError:
    with pytest.raises(ParameterError) as caught:
        normalise("chat", body)
    return caught.value


@pytest.mark.parametrize(
    ("name", "camels"),
    [
        ("top_p_sampling", "topPSampling"),
        ("max_kv_size", "maxKvSize"),
        ("num_draft_tokens", "numDraftTokens"),
        ("images_b64", "imagesB64"),
        ("n", "n"),
    ],
)
def test_camel_case_and_snake_case_are_one(name: str, camels: str) -> None:
    assert snake(camels) == name
    assert camel(name) == camels or name == "images_b64"


@pytest.mark.parametrize("name", VALUES)
def test_every_spelling_means_the_same(name: str) -> None:
    plain = normalise("chat", chat(**{name: VALUES[name]}))
    assert plain != normalise("chat", chat()), "the option changes nothing"
    for spelling in REQUESTS.spellings(name):
        assert normalise("chat", chat(**{spelling: VALUES[name]})) == plain, spelling


@pytest.mark.parametrize("name", VALUES)
def test_two_spellings_must_agree(name: str) -> None:
    if len(REQUESTS.spellings(name)) == 1:
        return
    first, second, *_ = REQUESTS.spellings(name)
    same = {first: VALUES[name], second: VALUES[name]}
    assert normalise("chat", chat(**same)) == normalise("chat", chat(**{name: VALUES[name]}))
    error = refusal(chat(**{first: VALUES[name], second: "another"}))
    assert (error.param, error.reason) == (second, "contradictory_parameters")
    assert repr(first) in str(error)


def test_two_drafts_are_refused() -> None:
    error = refusal(chat(draft_model="small", draftModel="tiny"))
    assert error.reason == "contradictory_parameters"
    assert "'small'" in str(error)
    assert "'tiny'" in str(error)
    assert refusal(chat(draft_model=["small", "tiny"])).param == "draft_model"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("tempereture", "temperature"),
        ("topP_", "topP"),
        ("max_token", "max_tokens"),
        ("guidedJson_", "guidedJson"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(written: str, meant: str) -> None:
    error = refusal(chat(**{written: 1}))
    assert (error.param, error.reason) == (written, "unknown_parameter")
    assert f"did you mean {meant!r}?" in error.mend


def test_a_name_like_none_is_refused_with_the_list() -> None:
    error = refusal(chat(qqqqqqqq=1))
    assert "temperature" in error.mend


@pytest.mark.parametrize("name", REQUESTS.foreign)
def test_what_others_know_is_refused_unless_it_changes_nothing(name: str) -> None:
    foreign = REQUESTS.foreign[name]
    for value in foreign.neutral:
        assert normalise("chat", chat(**{name: value})) == normalise("chat", chat())
    assert normalise("chat", chat(**{name: None})) == normalise("chat", chat())
    for spelling in REQUESTS.spellings(name):
        error = refusal(chat(**{spelling: "something else"}))
        assert (error.param, error.reason) == (spelling, "unsupported_parameter")
        assert error.mend


@pytest.mark.parametrize("name", REQUESTS.harmless)
def test_harmless_names_pass(name: str) -> None:
    values = REQUESTS.harmless[name].neutral or ("anything", {"a": 1})
    for value in values:
        assert normalise("chat", chat(**{name: value})) == normalise("chat", chat())


def test_a_harmless_name_with_a_value_that_asks_for_something_is_refused() -> None:
    assert refusal(chat(store=True)).param == "store"
    assert refusal(chat(service_tier="flex")).param == "service_tier"


def test_false_and_nought_are_not_the_same() -> None:
    assert refusal(chat(echo=0)).reason == "unsupported_parameter"
    assert normalise("chat", chat(xtc_probability=False)) == normalise("chat", chat(xtc_probability=0))


def test_options_of_other_kinds_are_refused() -> None:
    assert refusal(chat(prompt="x")).param == "prompt"
    with pytest.raises(ParameterError, match="does not belong"):
        normalise("completion", {"prompt": "x", "tools": []})
    with pytest.raises(ParameterError, match="does not belong"):
        normalise("embedding", {"input": "x", "temperature": 1})


@given(
    st.dictionaries(
        st.sampled_from([each for name in REQUESTS.options for each in REQUESTS.spellings(name)])
        | st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=6,
    ),
    st.sampled_from(get_args(Kind)),
)
def test_nothing_but_a_named_refusal_comes_of_any_body(body: dict[str, Json], kind: Kind) -> None:
    said = ""
    try:
        normalise(kind, body)
    except ParameterError as error:
        said = error.message
    assert "\n" not in said

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ParameterError
from tokenweir.gateway.direct.body import for_upstream, read
from tokenweir.gateway.metering.billing import TOTAL_COLUMNS, Names, total_cells
from tokenweir.gateway.metering.estimate import UsualOutput, prompt_tokens
from tokenweir.gateway.metering.prices import Price, PriceTable
from tokenweir.gateway.metering.usage import StreamMeter, TokenCount, usage_of
from tokenweir.ports.ledger import LedgerTotal

TOKEN = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}\n\n'
USAGE = (
    b'data: {"id":"a","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
COUNT = TokenCount(input_tokens=7, output_tokens=3, cached_tokens=4)


@given(st.lists(st.integers(1, 40), max_size=40), st.booleans(), st.sampled_from([b"\n", b"\r\n"]))
def test_any_split_passes_the_same_events_and_finds_the_usage(
    sizes: list[int],
    show_usage: bool,  # noqa: FBT001 - drawn by hypothesis
    line: bytes,
) -> None:
    whole = (TOKEN * 3 + USAGE + DONE).replace(b"\n", line)
    meter, passed, rest = StreamMeter(show_usage=show_usage), b"", whole
    for size in sizes:
        passed += meter.feed(rest[:size])
        rest = rest[size:]
    passed += meter.feed(rest) + meter.end()
    kept = TOKEN * 3 + (USAGE if show_usage else b"") + DONE
    assert passed == kept.replace(b"\n", line)
    assert meter.usage == COUNT
    assert (meter.chunks, meter.done) == (3, True)


def test_usage_beside_a_choice_is_passed_on() -> None:
    last = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    meter = StreamMeter(show_usage=False)
    assert meter.feed(last) == last
    assert meter.usage == TokenCount(input_tokens=1, output_tokens=2)


def test_text_that_speaks_of_usage_is_only_text() -> None:
    said = b'data: {"choices":[{"delta":{"content":"\\"usage\\": {"}}]}\n\n'
    meter = StreamMeter(show_usage=False)
    assert meter.feed(said) == said
    assert meter.usage is None


def test_a_whole_answers_usage_is_read() -> None:
    assert usage_of(USAGE[6:].strip()) == COUNT
    assert usage_of(b'{"usage":{"input_tokens":2,"output_tokens":5}}') == TokenCount(
        input_tokens=2, output_tokens=5
    )
    assert usage_of(b"{}") is None
    assert usage_of(b'{"usage":"none"') is None


def test_a_body_that_agrees_passes_as_it_is() -> None:
    body = b'{"model":"m","messages":[],"temperature":0.5}'
    assert for_upstream(body, read(body), model="m") is body
    streamed = b' {"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    assert for_upstream(streamed, read(streamed), model="m") is streamed


@pytest.mark.parametrize(
    "options", ["", ',"stream_options":null', ',"stream_options":{"include_usage":false}']
)
def test_usage_is_asked_for_in_every_stream(options: str) -> None:
    body = f'{{"model":"m","stream":true,"messages":[{{"role":"user","content":"é{{"}}]{options}}}'.encode()
    sent = msgspec.json.decode(for_upstream(body, read(body), model="m"))
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["messages"][0]["content"] == "é{"


def test_model_and_length_are_changed_where_they_must_be() -> None:
    body = b'{"model":"public","max_completion_tokens":900,"x":[1]}'
    sent = msgspec.json.decode(for_upstream(body, read(body), model="private", most_tokens=100))
    assert sent == {"model": "private", "max_completion_tokens": 100, "x": [1]}
    short = b'{"model":"m","max_tokens":9}'
    assert for_upstream(short, read(short), model="m", most_tokens=100) is short
    bare = b'{"model":"m"}'
    assert msgspec.json.decode(for_upstream(bare, read(bare), model="m", most_tokens=5))["max_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", "body"),
        (b"[]", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
        (b"{}", "model"),
        (b'{"model":5}', "model"),
        (b'{"model":"m","stream":"yes"}', "stream"),
        (b'{"model":"m","max_tokens":0}', "max_tokens"),
        (b'{"model":"m","n":-1}', "n"),
        (b'{"model":"m","max_tokens":1.5}', "max_tokens"),
    ],
)
def test_a_body_that_cannot_be_used_names_the_field(body: bytes, param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read(body)
    assert caught.value.param == param
    assert caught.value.mend


def test_costs_round_up_and_cached_input_is_cheaper() -> None:
    prices = PriceTable([Price(model="m", input=2.0, output=6.0, cached=0.5)])
    assert prices.cost("m", input_tokens=100, output_tokens=10, cached_tokens=40) == 60 * 2 + 20 + 60
    assert prices.cost("m", input_tokens=0, output_tokens=0) == 0
    assert PriceTable([Price(model="m", input=0.1, output=0)]).cost("m", input_tokens=1, output_tokens=0) == 1
    assert prices.cost("other", input_tokens=9, output_tokens=9) == 0


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=50), st.integers(1, 500), st.integers(1, 4))
def test_an_estimate_never_exceeds_what_the_caller_allows(seen: list[int], most: int, n: int) -> None:
    usual = UsualOutput()
    for tokens in seen:
        usual.note(b"k", "m", tokens)
    assert 1 <= usual.tokens(b"k", "m", max_tokens=most, n=n) <= most * n


def test_estimates_follow_what_is_usual() -> None:
    usual = UsualOutput(default_tokens=512)
    assert usual.tokens(b"k", "m", max_tokens=None) == 512
    for _ in range(200):
        usual.note(b"k", "m", 40)
    assert 40 <= usual.tokens(b"k", "m", max_tokens=None) <= 45
    assert usual.tokens(b"k", "other", max_tokens=None) == 512
    assert prompt_tokens(41) == 11


def test_use_without_a_team_has_an_empty_cell_that_programs_read_as_none() -> None:
    total = LedgerTotal(
        start_at=0,
        user=b"u" * 16,
        team=b"",
        key=b"k" * 16,
        model="m",
        requests=1,
        input_tokens=2,
        output_tokens=3,
        cached_tokens=0,
        cost=0,
        estimated=0,
    )
    cells = dict(zip(TOTAL_COLUMNS, total_cells(total, Names({b"u" * 16: "ada"}, {})), strict=True))
    assert (cells["user"], cells["team"]) == ("ada", "")

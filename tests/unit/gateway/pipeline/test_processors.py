from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import ConfigError, ParameterError
from tokenweir.core.events import Completed, Event, Started, Token, Usage
from tokenweir.core.requests import Json
from tokenweir.gateway.direct.body import fields_of
from tokenweir.gateway.pipeline.hook import PublicHosts
from tokenweir.gateway.pipeline.line import Asked, Line
from tokenweir.gateway.pipeline.processor import Ask, Processor, Stage
from tokenweir.gateway.pipeline.registry import BUILT_IN, kind_of, line, need_guards
from tokenweir.gateway.pipeline.route import part_of
from tokenweir.gateway.pipeline.settings import ProcessorSettings

PAGE = Path(__file__).parents[4] / "docs" / "gateway" / "pipelines.md"
S = 1_000_000_000


def built(
    *tables: dict[str, Any],
    stage: Stage = "gateway",
    clock: VirtualClock | None = None,
    models: str = "big small",
) -> Line:
    settings = [ProcessorSettings.model_validate(table) for table in tables]
    found = line(stage, settings, models=models.split(), clock=clock)
    assert found is not None
    return found


def ask(stage: Stage = "gateway", *, user: bytes = b"u", team: bytes = b"", **more: Any) -> Ask:  # noqa: ANN401 - JSON
    facts = {name: more.pop(name) for name in ("tier", "relayed", "streamed", "path") if name in more}
    fields: dict[str, Json] = {"model": "big", "messages": [{"role": "user", "content": "x"}], **more}
    made: dict[str, Any] = {"path": "/v1/chat/completions", **facts}
    return Ask(stage=stage, request="req_1", fields=fields, user=user, team=team, key=b"k", **made)


def passed(through: Line, asked: Ask) -> Asked:
    return asyncio.run(through.ask(asked))


def messages(through: Line, *given: tuple[str, Any]) -> list[tuple[str, Any]]:
    sent: list[Json] = [{"role": role, "content": content} for role, content in given]
    found: Any = passed(through, ask(messages=sent)).ask.fields["messages"]
    return [(message["role"], message["content"]) for message in found]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("before", [("system", "S"), ("system", "own"), ("user", "a")]),
        ("after", [("system", "own"), ("system", "S"), ("user", "a")]),
        ("missing", [("system", "own"), ("user", "a")]),
    ],
)
def test_a_system_text_stands_where_it_is_told_to(where: str, expected: list[tuple[str, str]]) -> None:
    through = built({"use": "template", "system": "S", "where": where})
    assert messages(through, ("system", "own"), ("user", "a")) == expected
    assert messages(through, ("user", "a")) == [("system", "S"), ("user", "a")]


def test_a_prompt_text_is_put_around_the_last_prompt_alone() -> None:
    through = built({"use": "template", "prompt": "<{prompt}|{prompt}>"})
    assert messages(through, ("user", "a"), ("assistant", "b"), ("user", "{prompt}c")) == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "<{prompt}c|{prompt}c>"),
    ]
    parts = [{"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": "t"}]
    assert messages(through, ("user", parts))[0][1][1]["text"] == "<t|t>"
    found = passed(through, ask(messages=None, prompt=["a", "b"])).ask.fields["prompt"]
    assert found == ["<a|a>", "<b|b>"]
    tokens = ask(messages=None, prompt=[1, 2])
    assert passed(through, tokens).ask is tokens


def test_a_rule_holds_where_all_of_it_does() -> None:
    rule: dict[str, Any] = {
        "use": "route",
        "to": "small",
        "models": ["big"],
        "tiers": ["free"],
        "tools": False,
    }
    through = built(rule)
    assert passed(through, ask(tier="free")).ask.model == "small"
    assert passed(through, ask(tier="gold")).ask.model == "big"
    assert passed(through, ask(tier="free", tools=[{}])).ask.model == "big"
    assert passed(through, ask(tier="free", model="other")).ask.model == "other"
    sized = built({"use": "route", "to": "small", "longer_than": 20, "shorter_than": 100})
    sizes = {size: passed(sized, ask(messages="x" * size)).ask.model for size in (18, 19, 97, 98)}
    assert sizes == {18: "big", 19: "small", 97: "small", 98: "big"}


def test_a_share_is_of_users_and_each_stays_where_he_is() -> None:
    through = built({"use": "route", "to": "small", "share": 0.25})
    users = [number.to_bytes(16, "big") for number in range(2000)]
    moved = [user for user in users if passed(through, ask(user=user)).ask.model == "small"]
    assert 400 < len(moved) < 600
    assert all(part_of(user) < 2**30 for user in moved)
    assert all(passed(through, ask(user=user)).ask.model == "small" for user in moved)


def test_metadata_is_added_and_fields_are_left_out() -> None:
    number = (7).to_bytes(16, "big")
    through = built({"use": "metadata", "add": {"who": "{user}/{tier}{team}"}, "remove": ["seed"]})
    found = passed(through, ask(user=number, tier="t", seed=1, metadata={"own": "1"})).ask.fields
    assert found["metadata"] == {"own": "1", "who": "user_00000000000000000000000007/t"}
    assert "seed" not in found
    flat = built({"use": "metadata", "add": {"user": "{path}"}, "into": ""})
    assert passed(flat, ask()).ask.fields["user"] == "/v1/chat/completions"


def test_prompts_are_redacted_wherever_they_say_it_but_not_in_what_is_no_text() -> None:
    through = built({"use": "redact", "patterns": ["email"], "replacement": "#"})
    content = [
        {"type": "text", "text": "a@b.org"},
        {"type": "image_url", "image_url": {"url": "https://a@b.org/x.png"}},
    ]
    call = {"id": "a@b.org", "function": {"name": "f", "arguments": '{"to":"a@b.org"}'}}
    found: Any = passed(
        through,
        ask(messages=[{"role": "user", "content": content}, {"role": "assistant", "tool_calls": [call]}]),
    ).ask.fields
    assert found["messages"][0]["content"][0]["text"] == "#"
    assert found["messages"][0]["content"][1] == content[1]
    assert found["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"to":"#"}'
    assert passed(through, ask(messages=None, input=["a@b.org", "x"])).ask.fields["input"] == ["#", "x"]
    item = {"id": "a@b.org", "type": "function_call_output", "call_id": "a@b.org", "output": "a@b.org"}
    picture = {"type": "input_image", "image_url": "https://a@b.org/x.png"}
    told: Any = {
        "echo": {"instructions": "tell a@b.org", "user": "a@b.org"},
        "items": [item, {"type": "message", "role": "user", "content": [picture]}],
        "before": [],
        "background": True,
    }
    kept: Any = passed(through, msgspec.structs.replace(ask(), told=told)).ask.told
    assert kept == {
        **told,
        "echo": {"instructions": "tell #", "user": "a@b.org"},
        "items": [{**item, "output": "#"}, told["items"][1]],
    }
    clean = msgspec.structs.replace(ask(), told={"items": [], "echo": {"instructions": None}})
    assert passed(through, clean).ask is clean
    refusing = built({"use": "redact", "patterns": ["email"], "answers": True, "streams": "refuse"})
    with pytest.raises(ParameterError, match="not in streams"):
        passed(refusing, ask(streamed=True))
    assert passed(refusing, ask(streamed=True, relayed=False)).ready is None


class Caught:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.body = b""
        self.headers: dict[bytes, bytes] = {}

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.headers = dict(headers)

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        self.headers, self.body = dict(headers), body

    async def write(self, piece: bytes) -> None:
        self.body += piece

    async def end(self, piece: bytes = b"") -> None:
        self.body += piece


def answer(through: Line, asked: Ask, body: bytes, *, status: int = 200, degraded: bool = False) -> None:
    """Have a request answered by an endpoint."""
    found = passed(through, asked)
    assert found.ready is None
    sink = found.around(Caught(), degraded=degraded)

    async def relay() -> None:
        if asked.streamed:
            await sink.begin(status, [(b"content-type", b"text/event-stream")])
            await sink.write(body[:5])
            await sink.end(body[5:])
        else:
            await sink.whole(status, [(b"content-type", b"application/json")], body)

    asyncio.run(relay())


def kept(through: Line, asked: Ask) -> bytes | None:
    ready = passed(through, asked).ready
    return None if ready is None else ready.body


def test_an_answer_is_kept_for_the_same_request_of_the_same_user_and_no_longer_than_it_may() -> None:
    clock = VirtualClock()
    through = built({"use": "cache", "ttl": "10s"}, clock=clock)
    answer(through, ask(seed=1, user=b"a"), b"{}")
    assert kept(through, ask(seed=1, user=b"a", metadata={"x": 1})) == b"{}"
    for other in (ask(seed=1, user=b"b"), ask(seed=2, user=b"a"), ask(seed=1, user=b"a", streamed=True)):
        assert kept(through, other) is None
    assert kept(through, ask(seed=1, user=b"a", relayed=False)) is None
    clock.advance(10 * S)
    assert kept(through, ask(seed=1, user=b"a")) is None


def test_what_is_not_whole_not_good_or_less_than_was_asked_is_not_kept() -> None:
    through = built({"use": "cache", "answer_bytes": 64})
    answer(through, ask(), b"no", status=500)
    answer(through, ask(), b"less", degraded=True)
    answer(through, ask(), b"x" * 65)
    answer(through, ask(streamed=True), b"data: {}\n\n")
    assert (kept(through, ask()), kept(through, ask(streamed=True))) == (None, None)
    answer(through, ask(streamed=True), b"data: {}\n\ndata: [DONE]\n\n")
    assert kept(through, ask(streamed=True)) == b"data: {}\n\ndata: [DONE]\n\n"
    drawing = built({"use": "cache", "sampled": False})
    answer(drawing, ask(temperature=1), b"{}")
    answer(drawing, ask(temperature=0), b"{}")
    assert (kept(drawing, ask(temperature=1)), kept(drawing, ask(temperature=0))) == (None, b"{}")


def test_the_cache_is_bounded_and_shared_as_it_is_told_to() -> None:
    through = built({"use": "cache", "entries": 2, "per": "team"})
    for number in range(3):
        answer(through, ask(n=number, user=b"a", team=b"t"), b"%d" % number)
        kept(through, ask(n=1, user=b"a", team=b"t"))
    assert kept(through, ask(n=1, user=b"b", team=b"t")) == b"1"
    assert kept(through, ask(n=0, user=b"a", team=b"t")) is None
    assert kept(through, ask(n=1, user=b"a")) is None
    sized = built({"use": "cache", "total_bytes": 1024})
    for number in range(3):
        answer(sized, ask(n=number), b"x" * 500)
    assert [kept(sized, ask(n=number)) is None for number in range(3)] == [True, False, False]


def test_at_work_events_are_kept_and_told_again_without_their_usage() -> None:
    through = built({"use": "cache"}, stage="worker")
    asked = ask("worker")
    (sieve,) = passed(through, asked).sieves()
    events: list[Event] = [Started(seq=2, upstream_id="u"), Token(seq=3, text="half")]
    sieve.feed([*events, Started(seq=4, model="m"), Token(seq=5, text="all"), Usage(seq=6, output_tokens=9)])
    assert passed(through, asked).ready is None
    sieve.feed([Completed(seq=7, finish_reason="stop")])
    ready = passed(through, asked).ready
    assert ready is not None
    assert [type(event) for event in ready.events] == [Started, Token, Usage, Completed]
    assert ready.events[2] == Usage(seq=0, input_tokens=0, output_tokens=0)


def test_answers_pass_the_first_processor_last() -> None:
    through = built({"use": "redact", "patterns": ["email"], "answers": True}, {"use": "cache"})
    body = json.dumps({"choices": [{"message": {"content": "a@b.org"}}]}).encode()
    caught = Caught()
    found = passed(through, ask())
    asyncio.run(found.around(caught).whole(200, [], body))
    assert b"[email]" in caught.body
    again = passed(through, ask())
    assert again.ready is not None
    assert b"a@b.org" in again.ready.body
    caught = Caught()
    asyncio.run(again.around(caught).whole(200, again.ready.headers, again.ready.body))
    assert b"[email]" in caught.body
    assert caught.headers == {b"x-weir-cache": b"hit"}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"use": "cash"}, "gateway.pipeline[0]: there is no processor 'cash'; did you mean 'cache'?"),
        (
            {"use": "cache", "ttll": "1m"},
            "gateway.pipeline[0] (cache): ttll: unknown key; did you mean 'ttl'?",
        ),
        ({"use": "cache", "ttl": "1"}, "ttl: duration 1 has no unit"),
        ({"use": "template"}, "needs system or prompt"),
        ({"use": "template", "prompt": "x"}, "has no {prompt}"),
        ({"use": "redact"}, "needs patterns or expressions"),
        ({"use": "redact", "patterns": ["mail"]}, "the pattern 'mail' is unknown; there are email"),
        ({"use": "redact", "expressions": ["("]}, "'(' is no regular expression"),
        ({"use": "redact", "expressions": ["x*"]}, "matches nothing at all"),
        ({"use": "route", "to": "tiny"}, "no endpoint serves the model 'tiny'; models here: big, small"),
        ({"use": "metadata", "add": {"a": "{usr}"}}, "unknown {usr}"),
        ({"use": "metadata", "remove": ["messages"]}, "messages cannot be changed as metadata"),
        ({"use": "hook", "url": "ftp://x"}, "cannot be called"),
        ({"use": "hook"}, "url: is missing"),
    ],
)
def test_settings_that_cannot_be_used_are_named(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(table)
    assert reason in str(caught.value)


def test_a_processor_works_where_it_can_and_answers_are_guarded_on_all_ways() -> None:
    with pytest.raises(ConfigError, match="does not work there; it works in gateway"):
        built({"use": "route", "to": "big"}, stage="worker")
    guarded = built({"use": "redact", "patterns": ["email"], "answers": True})
    with pytest.raises(ConfigError, match="redact answers in"):
        need_guards(guarded, None)
    need_guards(guarded, built({"use": "redact", "patterns": ["email"], "answers": True}, stage="worker"))
    need_guards(built({"use": "redact", "patterns": ["email"]}), None)
    assert line("gateway", ()) is None


def test_a_body_that_is_no_object_is_refused() -> None:
    for raw in (b"{", b"[]", b"\xff"):
        with pytest.raises(ParameterError):
            fields_of(raw)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "::1"])
def test_a_hook_calls_no_host_that_is_not_public_unless_it_is_named(host: str) -> None:
    with pytest.raises(Exception, match="not public"):
        asyncio.run(PublicHosts(()).resolve(host, 80))
    if host != "169.254.169.254":
        assert asyncio.run(PublicHosts((host,)).resolve(host, 80))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_key_of_every_processor_is_documented(name: str) -> None:
    section = PAGE.read_text(encoding="utf-8").partition(f"### `{name}`")[2].partition("\n##")[0]
    for key in kind_of(name, "").settings.model_fields:
        assert f"| `{key}` |" in section, key


PLUGIN = """
from tokenweir.config import SettingsModel
from tokenweir.gateway.pipeline.processor import Ask, Context, Kind, Processor


class ShoutSettings(SettingsModel):
    mark: str = "!"


class Shout(Processor):
    def __init__(self, settings: ShoutSettings) -> None:
        self.mark = settings.mark

    async def ask(self, ask: Ask) -> Ask:
        return ask.having(prompt=f"{ask.fields['prompt']}{self.mark}")


def make(settings: ShoutSettings, context: Context) -> Processor:
    return Shout(settings)


KIND = Kind(settings=ShoutSettings, stages=frozenset({"gateway"}), make=make)
"""


def test_a_package_adds_a_processor_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shouting_processor.py").write_text(PLUGIN, encoding="utf-8")
    facts = tmp_path / "shouting-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n", encoding="utf-8")
    (facts / "entry_points.txt").write_text(
        "[tokenweir.processors]\nshout = shouting_processor:KIND\n"
        "lost = shouting_processor:NONE\nmake = shouting_processor:make\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    through = built({"use": "shout", "mark": "?"})
    assert passed(through, ask(prompt="a")).ask.fields["prompt"] == "a?"
    for use, reason in (
        ("shot", "did you mean 'shout'?"),
        ("lost", "cannot be loaded from 'shouting_processor:NONE'"),
        ("make", "is no kind of processor"),
    ):
        with pytest.raises(ConfigError) as caught:
            built({"use": use})
        assert reason in str(caught.value)
    with pytest.raises(ConfigError, match="did you mean 'mark'"):
        built({"use": "shout", "mar": "?"})


def test_a_processor_lets_pass_what_it_has_nothing_to_do_with() -> None:
    asked, sink = ask(), Caught()
    plain = Processor()
    assert asyncio.run(plain.ask(asked)) is asked
    assert plain.around(asked, sink) is sink
    assert plain.sieve(asked) is None

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.events import (
    Accepted,
    Cancelled,
    Completed,
    Event,
    Failed,
    Queued,
    Started,
    Token,
    Usage,
)
from tokenweir.core.requests import ToolCall
from tokenweir.gateway.responses.folding import Facts, Fold, Told
from tokenweir.gateway.responses.wishes import Said

REQUEST = bytes.fromhex("01890a5d96de7000b97ac7e9d5c3a1f0")


def fold_of(*, background: bool = False) -> Fold:
    echo: dict[str, Any] = {"model": "sim", "background": background}
    return Fold(
        Facts(request=REQUEST, at=1_700_000_000_000_000_000, said=Said(echo=echo, background=background))
    )


def log_of(*tokens: Token, end: Event | None = None, background: bool = False) -> list[Event]:
    events: list[Event] = [Accepted(seq=0), *([Queued(seq=1)] if background else []), Started(seq=0), *tokens]
    events += [Usage(seq=0, input_tokens=3, output_tokens=4), end or Completed(seq=0, finish_reason="stop")]
    return [msgspec.structs.replace(event, seq=seq) for seq, event in enumerate(events)]


def kinds_of(told: list[Told]) -> list[str]:
    return [each.type.removeprefix("response.") for each in told]


tokens = st.lists(
    st.one_of(
        st.builds(Token, seq=st.just(0), text=st.text(min_size=1, max_size=3)),
        st.builds(Token, seq=st.just(0), reasoning=st.text(min_size=1, max_size=3)),
        st.builds(
            Token,
            seq=st.just(0),
            tool_calls=st.tuples(
                st.builds(ToolCall, index=st.integers(0, 2), arguments=st.text(max_size=3), name=st.just(""))
            ),
        ),
    ),
    max_size=12,
)
ends = st.sampled_from(
    [
        Completed(seq=0, finish_reason="stop"),
        Completed(seq=0, finish_reason="length"),
        Failed(seq=0, kind="interrupted", status=503),
        Cancelled(seq=0),
    ]
)


@given(tokens, ends, st.booleans(), st.lists(st.integers(0, 20)))
def test_the_same_log_tells_the_same_events_however_it_is_cut(
    said: list[Token],
    end: Event,
    background: bool,  # noqa: FBT001
    cuts: list[int],
) -> None:
    log = log_of(*said, end=end, background=background)
    whole = fold_of(background=background)
    told = whole.feed(log)
    cut = fold_of(background=background)
    again: list[Told] = []
    edges = [0, *sorted(min(at, len(log)) for at in cuts), len(log)]
    for first, last in pairwise(edges):
        again += cut.feed(log[first:last])
    assert again == told
    assert cut.response() == whole.response()
    assert [each.number for each in told] == list(range(len(told)))
    assert all(each.body["sequence_number"] == each.number for each in told)
    # The last event holds the response that is told to whoever asks for it whole.
    assert told[-1].body["response"] == whole.response()
    assert whole.ended
    assert not whole.feed(log)


@given(tokens, ends)
def test_what_the_events_build_up_is_the_output(said: list[Token], end: Event) -> None:
    """A reader who puts the deltas together has what the response says, and every item that opens is closed."""
    fold = fold_of()
    built: dict[int, str] = {}
    opened: list[int] = []
    closed: list[int] = []
    for each in fold.feed(log_of(*said, end=end)):
        body: Any = each.body
        match each.type:
            case "response.output_item.added":
                opened.append(body["output_index"])
                built[body["output_index"]] = ""
            case "response.output_item.done":
                closed.append(body["output_index"])
                assert body["item"]["status"] != "in_progress"
            case kind if kind.endswith(".delta"):
                built[body["output_index"]] += body["delta"]
            case _:
                pass
    output: Any = fold.response()["output"]
    assert opened == list(range(len(output)))
    assert sorted(closed) == opened
    assert [
        item.get("arguments") if "arguments" in item else item["content"][0]["text"] for item in output
    ] == [built[index] for index in opened]
    assert len({item["id"] for item in output}) == len(output)


def test_the_events_of_an_answer_come_in_openais_order() -> None:
    fold = fold_of(background=True)
    told = fold.feed(
        log_of(Token(seq=0, reasoning="hm"), Token(seq=0, text="a"), Token(seq=0, text="b"), background=True)
    )
    assert kinds_of(told) == [
        "created", "queued", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    responses: list[Any] = [each.body["response"] for each in told if "response" in each.body]
    assert [response["status"] for response in responses] == ["queued", "queued", "in_progress", "completed"]
    assert (responses[0]["output"], responses[0]["usage"]) == ([], None)
    assert responses[-1]["usage"]["total_tokens"] == 7


def test_calls_whose_pieces_come_by_turns_are_kept_apart() -> None:
    def piece(index: int, arguments: str, name: str = "", call: str = "") -> Token:
        return Token(seq=0, tool_calls=(ToolCall(index=index, id=call, name=name, arguments=arguments),))

    fold = fold_of()
    fold.feed(log_of(piece(0, "", "a", "c1"), piece(1, "{", "b", "c2"), piece(0, "{}"), piece(1, "}")))
    output: Any = fold.response()["output"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output] == [
        ("c1", "a", "{}"),
        ("c2", "b", "{}"),
    ]


@pytest.mark.parametrize(
    ("end", "status", "kind", "last"),
    [
        (Completed(seq=0, finish_reason="tool_calls"), "completed", "completed", "completed"),
        (Completed(seq=0, finish_reason="length"), "incomplete", "incomplete", "incomplete"),
        (Completed(seq=0, finish_reason="content_filter"), "incomplete", "incomplete", "incomplete"),
        (Failed(seq=0, kind="overloaded", status=429, message="busy"), "failed", "failed", "incomplete"),
        (Cancelled(seq=0), "cancelled", "incomplete", "incomplete"),
    ],
)
def test_each_end_has_its_status(end: Event, status: str, kind: str, last: str) -> None:
    fold = fold_of()
    told = fold.feed(log_of(Token(seq=0, reasoning="r"), Token(seq=0, text="t"), end=end))
    response: Any = fold.response()
    assert (response["status"], kinds_of(told)[-1]) == (status, kind)
    assert [item["status"] for item in response["output"]] == ["completed", last]
    assert (response["error"] is not None) is (status == "failed")
    assert (response["incomplete_details"] is not None) is (status == "incomplete")


def test_a_further_attempt_before_a_token_is_not_told() -> None:
    log = [
        Accepted(seq=0),
        Started(seq=1),
        Started(seq=2, attempt=2),
        Token(seq=3, text="a"),
        Completed(seq=4),
    ]
    assert kinds_of(fold_of().feed(log)).count("in_progress") == 1

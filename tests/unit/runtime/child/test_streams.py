from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from tests.factories.sim_models import directory, load

from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.ports.inference import (
    Broken,
    DecodeSequence,
    Decoding,
    Drawn,
    Prefilled,
    StepEvent,
    StepLimits,
)
from tokenweir.runtime.bridge.messages import Stepped, Tune
from tokenweir.runtime.child.answer import AnswerRules
from tokenweir.runtime.child.commands import StartStream
from tokenweir.runtime.child.requests import Request
from tokenweir.runtime.child.streams import ModelStreams
from tokenweir.runtime.engines.sim_tokens import encode

LAKE, RAIN, STOP = encode(" lake")[0], encode(" rain")[0], encode("#")[0]


class ScriptedDecoder:
    """A decoder whose steps bring what the test says; it keeps what it was told."""

    def __init__(self) -> None:
        self.inserted: list[DecodeSequence] = []
        self.removed: list[int] = []
        self.next: list[StepEvent] = []

    def insert(self, sequences: Sequence[DecodeSequence]) -> None:
        self.inserted += sequences

    def remove(self, sequences: Sequence[int]) -> None:
        self.removed += sequences

    def step(self, limits: StepLimits) -> Sequence[StepEvent]:
        events, self.next = self.next, []
        return [event for event in events if event.sequence not in limits.held]


class Bench:
    """Streams over a scripted decoder, and the events that left for each."""

    def __init__(self, at: Path) -> None:
        self.decoder = ScriptedDecoder()
        self.streams = ModelStreams("m", load(directory(at / "m")), self.decoder)
        self.events: dict[int, list[Event]] = {}

    def start(
        self,
        stream: int,
        *,
        credit: int = 100,
        n: int = 1,
        rules: AnswerRules | None = None,
        draft: bool = False,
    ) -> None:
        request = Request(
            stream=stream,
            model="m",
            tokens=(1, 2, 3),
            choices=(Decoding(max_tokens=100, use_draft=draft),) * n,
            rules=rules or AnswerRules(),
        )
        self.streams.start(StartStream(request=request, first_seq=2, credits=credit, asked_ns=100))
        self.streams.insert(150)

    def step(self, *events: StepEvent) -> Stepped:
        self.decoder.next += events
        found = self.decoder.step(self.streams.limits())
        return self.keep(self.streams.stepped(found, 1000, 1200))

    def keep(self, stepped: Stepped) -> Stepped:
        for told in stepped.streams:
            self.events.setdefault(told.stream, []).extend(told.events)
        return stepped

    def flush(self) -> None:
        if (told := self.streams.pending()) is not None:
            self.keep(told)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def lake(sequence: int, *, finish: str = "") -> Drawn:
    match finish:
        case "stop":
            return Drawn(sequence=sequence, token=-1, finish="stop")
        case "length":
            return Drawn(sequence=sequence, token=LAKE, finish="length")
        case _:
            return Drawn(sequence=sequence, token=LAKE)


def text(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def test_the_events_of_a_stream_are_numbered_without_a_gap(bench: Bench) -> None:
    bench.start(7)
    bench.step(Prefilled(sequence=1, prompt_tokens=3, cached_tokens=2), lake(1))
    bench.step(lake(1))
    bench.step(lake(1, finish="stop"))
    events = bench.events[7]
    assert [event.seq for event in events] == [2, 3, 4, 5, 6]
    assert [type(event) for event in events] == [Started, Token, Token, Usage, Completed]
    assert events[3] == Usage(
        seq=5,
        input_tokens=3,
        output_tokens=2,
        cached_tokens=2,
        reasoning_tokens=0,
        timings_ns={"queue_time": 50, "e2el": 1100, "ttft": 1100},
    )
    assert events[4] == Completed(seq=6, finish_reason="stop")
    assert bench.streams.take_ended() == [7]


def test_one_notification_holds_what_a_step_brought_to_all(bench: Bench) -> None:
    for stream in range(4):
        bench.start(stream)
    told = bench.step(
        *(Prefilled(sequence=number, prompt_tokens=3, cached_tokens=1) for number in (1, 2, 3)),
        *(lake(number) for number in (1, 2, 3)),
    )
    assert [one.stream for one in told.streams] == [0, 1, 2]
    assert (told.decoded, told.prefilled, told.prefix_hit_tokens) == (3, 6, 3)
    assert (told.running, told.waiting, told.step_ns) == (3, 1, 200)


def test_a_stream_without_credit_is_held_and_goes_on_with_more(bench: Bench) -> None:
    bench.start(1, credit=2)
    bench.start(2)
    for _ in range(5):
        bench.step(lake(1), lake(2))
    assert text(bench.events[1]) == " lake" * 2
    assert text(bench.events[2]) == " lake" * 5
    assert bench.streams.limits().held == {1}
    bench.streams.credit(1, 1)
    assert bench.streams.limits().held == frozenset()
    bench.step(lake(1), lake(2))
    bench.step(lake(1), lake(2))
    assert text(bench.events[1]) == " lake" * 3
    assert bench.streams.ready


def test_with_all_held_there_is_nothing_to_step(bench: Bench) -> None:
    bench.start(1, credit=0)
    assert not bench.streams.ready
    bench.streams.credit(1, 5)
    assert bench.streams.ready


def test_choices_share_the_credit_and_no_token_goes_beyond_it(bench: Bench) -> None:
    bench.start(1, credit=2, n=3)
    bench.step(lake(1), lake(2), lake(3))
    assert text(bench.events[1]) == " lake" * 2
    assert bench.streams.limits().held == {1, 2, 3}
    bench.streams.credit(1, 1)
    bench.flush()
    assert text(bench.events[1]) == " lake" * 3
    assert bench.streams.limits().held == {1, 2, 3}
    assert [event.seq for event in bench.events[1]] == list(range(2, 6))
    bench.streams.credit(1, 10)
    assert bench.streams.limits().held == frozenset()


def test_the_end_waits_for_the_tokens_before_it(bench: Bench) -> None:
    bench.start(1, credit=1, n=2)
    bench.step(lake(1, finish="length"), lake(2, finish="length"))
    assert [type(event) for event in bench.events[1]] == [Started, Token]
    assert bench.streams.take_ended() == []
    bench.streams.credit(1, 1)
    bench.flush()
    assert [type(event) for event in bench.events[1]] == [Started, Token, Token, Usage, Completed]
    assert bench.streams.take_ended() == [1]


def test_choices_end_together_and_their_usage_is_summed(bench: Bench) -> None:
    bench.start(1, n=2)
    bench.step(lake(1), lake(2, finish="length"))
    bench.step(lake(1, finish="stop"))
    tokens = [event for event in bench.events[1] if isinstance(event, Token)]
    assert [token.index for token in tokens] == [0, 1]
    assert bench.events[1][-2:] == [
        Usage(
            seq=5,
            input_tokens=3,
            output_tokens=2,
            reasoning_tokens=0,
            timings_ns={"queue_time": 50, "e2el": 1100, "ttft": 1100},
        ),
        Completed(seq=6, finish_reason="stop", data={"finish_reasons": ["stop", "length"]}),
    ]


def test_a_stop_string_frees_the_sequence_at_once(bench: Bench) -> None:
    bench.start(1, rules=AnswerRules(stops=("#",)))
    bench.step(lake(1))
    bench.step(Drawn(sequence=1, token=STOP), lake(1))
    assert bench.decoder.removed == [1]
    assert text(bench.events[1]) == " lake"
    assert isinstance(bench.events[1][-1], Completed)
    assert bench.step(lake(1)).streams == ()


def test_a_cancelled_stream_ends_with_that_and_frees_its_sequences(bench: Bench) -> None:
    bench.start(1, credit=1, n=3)
    bench.step(lake(1), lake(2), lake(3))
    bench.streams.cancel(1)
    bench.flush()
    assert bench.events[1][-1] == Cancelled(seq=4)
    assert [event.seq for event in bench.events[1]] == [2, 3, 4]
    assert sorted(bench.decoder.removed) == [1, 2, 3]
    assert bench.streams.take_ended() == [1]
    bench.streams.cancel(1)
    bench.streams.credit(1, 5)
    assert bench.streams.pending() is None


def test_a_stream_cancelled_before_it_is_inserted_never_is(bench: Bench) -> None:
    request = Request(stream=1, model="m", tokens=(1,), choices=(Decoding(max_tokens=1),))
    bench.streams.start(StartStream(request=request, first_seq=0, credits=1, asked_ns=0))
    bench.streams.cancel(1)
    bench.streams.insert(0)
    assert bench.decoder.inserted == []
    assert not bench.streams.ready


def test_a_broken_sequence_fails_its_stream_and_no_other(bench: Bench) -> None:
    bench.start(1, n=2)
    bench.start(2)
    bench.step(lake(1), Broken(sequence=2, code="guidance", message="no", retryable=False), lake(3))
    assert bench.events[1][-1] == Failed(seq=4, kind="guidance", message="no", status=400)
    assert sorted(bench.decoder.removed) == [1, 2]
    assert text(bench.events[2]) == " lake"


def test_proposals_of_a_draft_model_are_counted(bench: Bench) -> None:
    bench.start(1, draft=True)
    told = bench.step(
        Drawn(sequence=1, token=LAKE, drafted=True, proposed=3),
        Drawn(sequence=1, token=RAIN, drafted=True),
        Drawn(sequence=1, token=LAKE),
    )
    assert (told.decoded, told.drafted, told.accepted) == (3, 3, 2)
    bench.step(lake(1, finish="stop"))
    usage = bench.events[1][-2]
    assert isinstance(usage, Usage)
    assert (usage.drafted_tokens, usage.accepted_tokens) == (3, 2)


def test_tuning_changes_the_next_step(bench: Bench) -> None:
    bench.start(1, credit=0)
    bench.streams.tune(Tune(model="m", batch=3, prefill_tokens=64))
    assert bench.streams.limits() == StepLimits(batch=3, prefill_tokens=64, held=frozenset({1}))

"""The service and its device thread, called as the bridge calls them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest
from tests.factories.sim_models import card, directory

from tokenweir.core.errors import (
    ConfigError,
    EngineError,
    InputError,
    ModelNotLoadedError,
    NoMemoryError,
    ParameterError,
    ProtocolError,
    SpecError,
    TooManyStreamsError,
    UnavailableError,
)
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage, text
from tokenweir.core.requests import GenerateRequest, Json, Message, Sampling
from tokenweir.ports.inference import LoadSpec
from tokenweir.runtime.bridge.messages import (
    Cancel,
    Credit,
    Detokenize,
    Embed,
    Initialize,
    Load,
    Ping,
    Prepare,
    PrepareBatch,
    Shutdown,
    Start,
    Stepped,
    Tokenize,
    Tune,
    Unload,
)
from tokenweir.runtime.child.device import Device
from tokenweir.runtime.child.rpc import Service

WAIT_S = 20
ResultT = TypeVar("ResultT")


def done(future: Future[ResultT]) -> ResultT:
    return future.result(WAIT_S)


class Rig:
    """A running service, and what it sends."""

    def __init__(
        self, at: Path, *, max_active_streams: int = 64, options: dict[str, Json] | None = None
    ) -> None:
        self._at = at
        self._sent: queue.SimpleQueue[Stepped] = queue.SimpleQueue()
        self._events: dict[int, list[Event]] = {}
        self.steps: list[Stepped] = []
        self.ended = threading.Event()
        self.device = Device()
        self.service = Service(self.device)
        self.device.start(self._sent.put, self.ended.set)
        self.initialize = Initialize(
            protocol=1,
            engine="sim",
            epoch=3,
            limit_bytes=1 << 20,
            prefix_cache_bytes=1 << 20,
            max_active_streams=max_active_streams,
            options=options or {},
        )

    def load(self, name: str = "m", **keys: Json) -> None:
        path = directory(self._at / name, **keys)
        weights = keys.get("weights_bytes", 0)
        known = card(path, weights_bytes=weights if isinstance(weights, int) else 0)
        done(self.service.load(Load(spec=LoadSpec(name=name, path=str(path)), card=known)))

    def ask(self, stream: int, prompt: str = "hello", **sampling: object) -> Prepare:
        settings: dict[str, object] = {"temperature": 0.0, **sampling}
        request = GenerateRequest(
            kind="chat",
            model="m",
            messages=(Message(role="user", content=prompt),),
            sampling=Sampling(**settings),  # pyright: ignore[reportArgumentType]
        )
        return Prepare(stream=stream, model="m", request=request)

    def start(self, stream: int, *, credit: int = 1 << 20) -> None:
        self.service.start(Start(stream=stream, first_seq=2, credits=credit))

    def events(self, stream: int, *, until: type[Event] = Completed) -> list[Event]:
        """Return the events of a stream up to one of a kind, or to its end."""
        while True:
            found = self._events.setdefault(stream, [])
            if any(isinstance(event, (until, Completed, Failed, Cancelled)) for event in found):
                return found
            self.take()

    def take(self) -> Stepped:
        told = self._sent.get(timeout=WAIT_S)
        self.steps.append(told)
        for one in told.streams:
            self._events.setdefault(one.stream, []).extend(one.events)
        return told

    def run(self, stream: int, prompt: str = "hello", **sampling: object) -> list[Event]:
        self.service.prepare(self.ask(stream, prompt, **sampling))
        self.start(stream)
        return self.events(stream)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    done(one.service.initialize(one.initialize))
    yield one
    done(one.service.shutdown(Shutdown()))
    assert one.ended.wait(WAIT_S)


def test_a_request_goes_from_its_start_to_its_end(rig: Rig) -> None:
    rig.load(output_tokens="constant:9")
    size = rig.service.prepare(rig.ask(1))
    assert size.prompt_tokens > 0
    rig.start(1)
    events = rig.events(1)
    assert [type(event) for event in events] == [Started, *[Token] * 9, Usage, Completed]
    assert [event.seq for event in events] == list(range(2, 14))
    assert rig.service.ping(Ping()).streams == 0


def test_an_answer_is_the_same_alone_and_among_others(rig: Rig) -> None:
    rig.load()
    prompts = [f"question {number}" for number in range(32)]
    alone = [text(rig.run(number, prompt)) for number, prompt in enumerate(prompts)]
    batch = rig.service.prepare_batch(
        PrepareBatch(items=tuple(rig.ask(100 + number, prompt) for number, prompt in enumerate(prompts)))
    )
    assert all(item.prepared is not None for item in batch.items)
    for number in range(32):
        rig.start(100 + number)
    assert [text(rig.events(100 + number)) for number in range(32)] == alone
    assert max(step.running for step in rig.steps) > 8


def test_a_cancelled_stream_ends_and_others_go_on(rig: Rig) -> None:
    rig.load(itl="1ms", output_tokens="constant:200")
    for stream in (1, 2):
        rig.service.prepare(rig.ask(stream, max_tokens=200))
        rig.start(stream)
    rig.events(1, until=Token)
    rig.service.cancel(Cancel(stream=1))
    assert isinstance(rig.events(1)[-1], Cancelled)
    assert isinstance(rig.events(2)[-1], Completed)
    assert rig.device.active == set()


def test_a_prepared_stream_can_be_forgotten(rig: Rig) -> None:
    rig.load()
    rig.service.prepare(rig.ask(1))
    assert rig.service.ping(Ping()).streams == 1
    rig.service.cancel(Cancel(stream=1))
    assert rig.service.ping(Ping()).streams == 0
    with pytest.raises(EngineError, match="without having been prepared"):
        rig.start(1)


def test_a_stream_is_held_until_there_is_credit(rig: Rig) -> None:
    rig.load(output_tokens="constant:6")
    rig.service.prepare(rig.ask(1))
    rig.start(1, credit=2)
    other = rig.run(2)
    held = rig.events(1, until=Started)
    assert sum(isinstance(event, Token) for event in held) == 2
    rig.device.post(Credit(stream=1, tokens=100))
    assert text(rig.events(1)) == text(other)


def test_the_batch_is_as_large_as_it_is_tuned(rig: Rig) -> None:
    rig.load(output_tokens="constant:20")
    rig.device.post(Tune(model="m", batch=3, prefill_tokens=64))
    for stream in range(10):
        rig.service.prepare(rig.ask(stream, f"question {stream}"))
        rig.start(stream)
    for stream in range(10):
        rig.events(stream)
    assert max(step.decoded for step in rig.steps) == 3


def test_the_batch_is_as_large_as_the_beginning_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path, options={"max_batch": 2, "prefill_tokens": 16})
    done(rig.service.initialize(rig.initialize))
    rig.load(output_tokens="constant:20")
    for stream in range(6):
        rig.service.prepare(rig.ask(stream, f"question {stream}"))
        rig.start(stream)
    for stream in range(6):
        rig.events(stream)
    assert max(step.decoded for step in rig.steps) == 2
    done(rig.service.shutdown(Shutdown()))


def test_there_is_a_most_of_streams(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_active_streams=2)
    done(rig.service.initialize(rig.initialize))
    rig.load()
    rig.service.prepare(rig.ask(1))
    rig.service.prepare(rig.ask(2))
    with pytest.raises(TooManyStreamsError, match="2 requests are in work"):
        rig.service.prepare(rig.ask(3))
    rig.start(1)
    rig.events(1)
    rig.service.prepare(rig.ask(3))
    done(rig.service.shutdown(Shutdown()))


def test_one_bad_request_of_a_batch_does_not_touch_the_others(rig: Rig) -> None:
    rig.load()
    bad = rig.ask(2, temperature=-1.0)
    batch = rig.service.prepare_batch(PrepareBatch(items=(rig.ask(1), bad, rig.ask(3))))
    first, second, third = batch.items
    assert first.prepared is not None
    assert third.prepared is not None
    assert second.fault is not None
    assert second.fault.data is not None
    assert second.fault.data.code == "bad_parameter"
    with pytest.raises(SpecError, match="the stream 1 is in use"):
        rig.service.prepare(rig.ask(1))


def test_unloading_fails_what_runs_and_returns_the_memory(rig: Rig) -> None:
    rig.load(weights_bytes=5000, itl="1ms", output_tokens="constant:5000")
    assert rig.service.ping(Ping()).memory.active_bytes == 5000
    rig.service.prepare(rig.ask(1))
    rig.service.prepare(rig.ask(2))
    rig.start(1)
    rig.events(1, until=Token)
    assert done(rig.service.unload(Unload(model="m"))).active_bytes == 0
    last = rig.events(1)[-1]
    assert isinstance(last, Failed)
    assert (last.kind, last.retryable) == (UnavailableError.code, True)
    rig.start(2)
    assert isinstance(rig.events(2)[-1], Failed)
    assert rig.device.active == set()
    with pytest.raises(ModelNotLoadedError):
        done(rig.service.unload(Unload(model="m")))
    with pytest.raises(ModelNotLoadedError):
        rig.service.prepare(rig.ask(3))


def test_a_name_is_loaded_once_and_what_does_not_fit_is_refused(rig: Rig) -> None:
    rig.load()
    with pytest.raises(InputError, match="'m' is loaded already"):
        rig.load()
    with pytest.raises(NoMemoryError, match="needs 2,000,000 bytes"):
        rig.load("large", weights_bytes=2_000_000)
    assert rig.service.ping(Ping()).memory.active_bytes == 0


@pytest.mark.parametrize(("kind", "code"), [("memory", "no_memory"), ("error", "engine")])
def test_a_failed_step_fails_its_streams_and_the_device_lives_on(rig: Rig, kind: str, code: str) -> None:
    rig.load(faults=[{"kind": kind, "when": "now", "after_tokens": 2}])
    last = rig.run(1, "fail now")[-1]
    assert isinstance(last, Failed)
    assert last.kind == code
    assert isinstance(rig.run(2, "stay well")[-1], Completed)


def test_text_is_tokenised_and_back(rig: Rig) -> None:
    rig.load()
    tokens = rig.service.tokenize(Tokenize(model="m", text="wörld lake")).tokens
    assert rig.service.detokenize(Detokenize(model="m", tokens=tokens)).text == "wörld lake"
    turns = (Message(role="user", content="hello"),)
    size = rig.service.prepare(rig.ask(1)).prompt_tokens
    assert len(rig.service.tokenize(Tokenize(model="m", messages=turns)).tokens) == size
    with pytest.raises(ParameterError, match="there is no token 512"):
        rig.service.detokenize(Detokenize(model="m", tokens=(512,)))
    with pytest.raises(ParameterError, match="both set"):
        rig.service.tokenize(Tokenize(model="m", text="x", messages=turns))


def test_texts_are_embedded_in_order_while_others_decode(rig: Rig) -> None:
    rig.load(itl="1ms", output_tokens="constant:100")
    rig.service.prepare(rig.ask(1))
    rig.start(1)
    inputs = tuple(f"the lake {number}" for number in range(20))
    found = done(rig.service.embed(Embed(model="m", inputs=inputs)))
    assert len(found.vectors) == 20
    assert found.vectors[7] == done(rig.service.embed(Embed(model="m", inputs=inputs[7:8]))).vectors[0]
    assert found.input_tokens > 20
    assert isinstance(rig.events(1)[-1], Completed)
    with pytest.raises(ParameterError, match="there are 0 inputs"):
        rig.service.embed(Embed(model="m", inputs=()))
    with pytest.raises(ParameterError, match="input 0 has"):
        rig.service.embed(Embed(model="m", inputs=("x" * 5000,)))


def test_a_standstill_of_the_device_is_told(rig: Rig) -> None:
    rig.load(faults=[{"kind": "stall", "duration": "300ms", "after_tokens": 1}])
    assert rig.service.ping(Ping()).stalled_ns == 0
    rig.service.prepare(rig.ask(1))
    rig.start(1)
    rig.events(1, until=Token)
    seen = 0
    while seen < 100_000_000:
        seen = rig.service.ping(Ping()).stalled_ns
    assert isinstance(rig.events(1)[-1], Completed)


def test_the_beginning_is_checked(tmp_path: Path) -> None:
    rig = Rig(tmp_path, options={"threads": 2})
    with pytest.raises(EngineError, match="has not begun"):
        rig.load()
    with pytest.raises(ConfigError, match="no option 'threads'"):
        done(rig.service.initialize(rig.initialize))
    with pytest.raises(ProtocolError, match="called twice"):
        rig.service.initialize(rig.initialize)
    done(rig.service.shutdown(Shutdown()))


def test_limits_of_requests_stand_among_the_options(tmp_path: Path) -> None:
    rig = Rig(tmp_path, options={"default_max_tokens": 5})
    done(rig.service.initialize(rig.initialize))
    rig.load(output_tokens="constant:50")
    events = rig.run(1)
    assert sum(isinstance(event, Token) for event in events) == 5
    done(rig.service.shutdown(Shutdown()))
    wrong = Rig(tmp_path, options={"default_max_tokens": "many"})
    with pytest.raises(ConfigError, match="a limit of requests is wrong"):
        wrong.service.initialize(wrong.initialize)
    done(wrong.service.shutdown(Shutdown()))


def test_a_shutdown_ends_every_stream(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    done(rig.service.initialize(rig.initialize))
    rig.load(itl="1ms", output_tokens="constant:5000")
    rig.service.prepare(rig.ask(1))
    rig.start(1)
    rig.events(1, until=Token)
    done(rig.service.shutdown(Shutdown()))
    last = rig.events(1)[-1]
    assert isinstance(last, Failed)
    assert (last.kind, last.retryable) == ("draining", True)
    assert rig.ended.wait(WAIT_S)

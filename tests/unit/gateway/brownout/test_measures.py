from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from tokenweir.asgi.problems import problem
from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import BrownedOutError, ConfigError, ParameterError
from tokenweir.gateway.brownout.brownout import Brownout
from tokenweir.gateway.brownout.ladder import Normal
from tokenweir.gateway.brownout.measures import Lessened, lessen, rung_of
from tokenweir.gateway.brownout.settings import RungSettings, SloSettings
from tokenweir.gateway.doors.brownout_metrics import BrownoutMetrics
from tokenweir.ports.access import Caller
from tokenweir.ports.queue import QueueDepth

S = 1_000_000_000
ASK = {"model": "big", "messages": [{"role": "user", "content": "x"}], "extra": [1]}


def caller(*, tier: str = "", priority: int = 5, models: tuple[str, ...] = ()) -> Caller:
    return Caller(
        key=b"k",
        user=b"u",
        team=b"",
        scopes=frozenset({"infer"}),
        tier=tier,
        priority=priority,
        models=models,
    )


def left(
    body: dict[str, Any], *rungs: dict[str, Any], who: Caller | None = None, queued: bool = False
) -> tuple[Lessened, dict[str, Any]]:
    made = [rung_of(RungSettings.model_validate(rung)) for rung in rungs]
    raw = json.dumps({**ASK, **body}).encode()
    found = lessen(made, who or caller(), raw, queued=queued)
    if not set(found.does) - {"queue"}:
        assert found.raw is raw
    return found, json.loads(found.raw)


SHORTER = {"does": "shorter", "max_tokens": 10}
FASTER = {"does": "faster_model", "models": {"big": "small"}}
PLAIN = {"does": "refuse_features"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"max_tokens": 10}),
        ({"max_tokens": 11}, {"max_tokens": 10}),
        ({"max_tokens": 4}, None),
        ({"max_completion_tokens": 99}, {"max_completion_tokens": 10}),
        ({"max_completion_tokens": 9, "max_tokens": 500}, None),
        ({"max_completion_tokens": 90, "max_tokens": 5}, {"max_completion_tokens": 10, "max_tokens": 5}),
        ({"max_tokens": None}, {"max_tokens": 10}),
    ],
)
def test_answers_are_bounded_where_they_were_longer(
    body: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    found, after = left(body, SHORTER)
    assert found.what == (("max_tokens=10",) if expected else ())
    assert after == {**ASK, **body, **(expected or {})}


def test_embeddings_have_no_length() -> None:
    rungs = [rung_of(RungSettings.model_validate(SHORTER))]
    raw = b'{"model":"big","input":"x"}'
    assert lessen(rungs, caller(), raw, queued=False) == Lessened(raw=raw)


def test_a_faster_model_is_asked_where_the_key_may() -> None:
    found, after = left({}, FASTER, SHORTER)
    assert (after["model"], found.what, found.does) == (
        "small",
        ("model=small", "max_tokens=10"),
        ("faster_model", "shorter"),
    )
    assert left({}, FASTER, who=caller(models=("big",)))[0].what == ()
    assert left({"model": "other"}, FASTER)[0].what == ()


@pytest.mark.parametrize(
    ("body", "feature"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"n": 2}, "n"),
        ({"best_of": 4}, "best_of"),
        ({"logprobs": False, "n": 1, "best_of": 1, "top_logprobs": 0}, ""),
    ],
)
def test_costly_features_are_refused_by_name(body: dict[str, Any], feature: str) -> None:
    if not feature:
        assert left(body, PLAIN)[0].what == ()
        return
    with pytest.raises(BrownedOutError, match=f"leave {feature} out") as caught:
        left(body, PLAIN)
    told = problem(caught.value)
    assert (told.status, told.retry_after_s, told.degraded) == (503, 5, f"refused={feature}")


def test_the_last_rung_refuses_with_its_status_and_when_to_come_back() -> None:
    with pytest.raises(BrownedOutError) as caught:
        left({}, SHORTER, {"does": "refuse", "status": 429, "retry_after": "7s"})
    told = problem(caught.value)
    assert (told.status, told.error.type, told.error.code) == (429, "rate_limit_error", "browned_out")
    assert dict(told.headers) == {b"retry-after": b"7", b"x-weir-degraded": b"refused"}


def test_tiers_priorities_and_paths_decide_whom_a_rung_touches() -> None:
    refuse = {"does": "refuse", "exempt": ["gold"], "priority": 5, "paths": ["direct"]}
    assert left({}, refuse, who=caller(tier="gold"))[0].what == ()
    assert left({}, refuse, who=caller(priority=6))[0].what == ()
    assert left({}, refuse, queued=True)[0].what == ()
    with pytest.raises(BrownedOutError):
        left({}, refuse, who=caller(tier="silver"))


def test_the_queue_takes_direct_requests_but_for_those_with_log_probabilities() -> None:
    queue = {"does": "queue", "deadline": "30s"}
    found, _ = left({}, queue)
    assert found.queue is not None
    assert (found.what, found.queue.deadline_ns) == (("queued",), 30 * S)
    assert left({}, queue, queued=True)[0].queue is None
    assert left({"logprobs": True}, queue)[0].queue is None


def test_what_is_no_request_is_refused_as_ever() -> None:
    rungs = [rung_of(RungSettings.model_validate(SHORTER))]
    for raw in (b"{", b"[]", b'{"model":"big","max_tokens":"x"}', b'{"messages":[]}'):
        with pytest.raises(ParameterError):
            lessen(rungs, caller(), raw, queued=False)


@pytest.mark.parametrize(
    ("rung", "reason"),
    [
        ({"does": "shorter"}, "needs max_tokens"),
        ({"does": "faster_model"}, "needs models"),
        ({"does": "refuse", "enter": 1, "leave": 1}, "not below enter"),
        ({"does": "refuse", "max_tokens": 3}, "belongs to a rung that does shorter"),
        ({"does": "queue", "paths": ["queued"]}, "direct requests alone"),
        ({"does": "refuse", "status": 500}, "429 or 503"),
    ],
)
def test_a_rung_that_contradicts_itself_is_refused(rung: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RungSettings.model_validate(rung)


async def depth() -> QueueDepth | None:
    return None


def brownout(clock: VirtualClock, *rungs: dict[str, Any], **slo: Any) -> Brownout:  # noqa: ANN401 - settings
    return Brownout(
        [RungSettings.model_validate(rung) for rung in rungs],
        SloSettings.model_validate(slo),
        clock=clock,
        models=("big", "small"),
        depth=depth,
    )


def test_queue_age_and_first_tokens_climb_the_ladder_and_calm_leaves_it() -> None:
    clock = VirtualClock()
    found = brownout(
        clock, {**SHORTER, "dwell": "2s"}, {**FASTER, "dwell": "2s"}, ttft="1s", queue_age="10s", samples=1
    )
    raw = json.dumps(ASK).encode()
    assert found.lessen(caller(), raw, queued=False).raw is raw
    found.note(10 * S)
    assert (found.rung, found.doing) == (1, ("shorter",))
    ticket = found.first_tokens.asked()
    clock.advance(2 * S)
    found.note(0)
    assert (found.rung, found.waits.pressure) == (2, 2.0)
    assert found.lessen(caller(), raw, queued=True).what == ("max_tokens=10", "model=small")
    assert found.counts == {"shorter": 1, "faster_model": 1}
    found.first_tokens.left(ticket)
    for _ in range(4):
        found.note(None)
        clock.advance(2 * S)
    assert found.state == Normal()


def test_a_model_that_nobody_serves_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="'tiny'; models here: big, small"):
        brownout(VirtualClock(), {"does": "faster_model", "models": {"big": "tiny"}})


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    metrics = BrownoutMetrics(registry)
    found = brownout(VirtualClock(), SHORTER)
    found.counts["shorter"] += 2
    metrics.look(found)
    metrics.look(found)
    assert registry.get_sample_value("weir_gateway_degraded_total", {"does": "shorter"}) == 2
    text = (Path(__file__).parents[4] / "docs" / "gateway" / "brownout.md").read_text(encoding="utf-8")
    for metric in registry.collect():
        assert f"`{metric.name}`" in text

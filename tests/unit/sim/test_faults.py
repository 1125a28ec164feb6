from __future__ import annotations

import pytest

from tokenweir.core.errors import ConfigError
from tokenweir.sim.faults import KINDS, Fault, FaultPlan, parse_fault, parse_rule


def test_options_follow_the_kind() -> None:
    assert parse_fault("429;retry-after=2") == Fault(kind="status", status=429, retry_after="2")
    assert parse_fault("stall; after=8; for=2s") == Fault(kind="stall", after=8, for_ns=2_000_000_000)
    assert parse_fault("wrong-usage;factor=1.5").factor == 1.5
    assert parse_fault("content-type;value=text/plain").value == "text/plain"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_ordered(kind: str) -> None:
    assert parse_fault(kind).kind == kind


@pytest.mark.parametrize(
    "text", ["", "200", "600", "explode", "stall;after", "stall;for=2", "429;x=1", "stall;after=x"]
)
def test_an_unknown_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_fault(text)


@pytest.mark.parametrize("text", ["429@2", "429@-0.1", "429@#0", "429@every=0", "429@often"])
def test_a_rule_that_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        parse_rule(text)


def test_rules_pick_by_number() -> None:
    plan = FaultPlan(("500@#3", "close@every=4"), seed=0)
    kinds = [fault.kind if (fault := plan.pick(number)) else None for number in range(1, 9)]
    assert kinds == [None, None, "status", "close", None, None, None, "close"]


def test_a_rate_befalls_its_share_and_the_seed_says_whom() -> None:
    def befallen(seed: int, *rules: str) -> list[int]:
        plan = FaultPlan(rules, seed=seed)
        return [number for number in range(1, 5001) if plan.pick(number) is not None]

    assert len(befallen(1, "429@0.1")) == pytest.approx(500, rel=0.15)
    assert befallen(1, "429@0.1") == befallen(1, "429@0.1")
    assert befallen(1, "429@0.1") != befallen(2, "429@0.1")
    assert befallen(1, "429") == list(range(1, 5001))


def test_a_further_rule_does_not_shift_the_choices_of_another() -> None:
    alone, together = FaultPlan(("stall@0.2",), seed=4), FaultPlan(("stall@0.2", "close@#2"), seed=4)
    chosen = [(alone.pick(number), together.pick(number)) for number in range(1, 500)]
    assert all(one == both for one, both in chosen[2:])

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.bench.engine.stage import Script, Server, stage
from tests.unit.bench.finishing.segments import counted

from tokenweir.bench.engine import waking
from tokenweir.bench.engine.waking import Doze, Spin

SECOND_NS = 1_000_000_000
TICK_NS = 100_000_000


class Machine:
    """Says how long it has been idle, as ``/proc/uptime`` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.idle_s = 1000.0
        self.rest(0.0)

    def rest(self, seconds: float) -> None:
        self.idle_s += seconds
        self.path.write_text(f"12345.67 {self.idle_s:.2f}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "uptime")
    monkeypatch.setattr(waking, "_UPTIME", made.path)
    return made


def every(gap_ns: int) -> list[int]:
    return list(range(0, 100 * gap_ns, gap_ns))


@given(st.integers(0, 400_000), st.integers(1, 20_000))
def test_a_doze_is_short_beside_the_gap_between_a_streams_reads(reads_per_s: int, streams: int) -> None:
    doze = Doze()
    doze.tick(SECOND_NS, 0, streams)
    doze.tick(SECOND_NS + TICK_NS, reads_per_s // 10, streams)
    if not doze.seconds:
        return
    gap_s = streams / (reads_per_s // 10) / 10
    assert reads_per_s >= 10_000
    assert gap_s >= 0.0025
    assert 0.0002 <= doze.seconds <= 0.001
    assert doze.seconds <= max(0.0002, 0.0501 * gap_s)
    assert doze.room_ns > 2 * doze.seconds * 1e9


def test_dozing_begins_and_ends_with_the_rate_of_reads() -> None:
    doze = Doze()
    total = 0
    lengths: list[float] = []
    for number, reads in enumerate((0, 0, 5000, 5000, 500, 0, 5000)):
        total += reads
        doze.tick(SECOND_NS + number * TICK_NS, total, 1000)
        lengths.append(doze.seconds)
    assert [bool(length) for length in lengths] == [False, False, True, True, False, False, True]
    assert lengths[2] == pytest.approx(0.001)


def test_few_streams_that_come_fast_are_never_dozed_over() -> None:
    doze = Doze()
    doze.tick(SECOND_NS, 0, 20)
    doze.tick(SECOND_NS + TICK_NS, 2000, 20)
    assert not doze.seconds


@pytest.mark.parametrize(
    ("gap_ns", "lead_ns"), [(10_000_000, 300_000), (500_000, 250_000), (100_000, 50_000)]
)
def test_the_lead_is_a_share_of_the_time_between_requests(
    machine: Machine, gap_ns: int, lead_ns: int
) -> None:
    assert machine.idle_s
    assert Spin(every(gap_ns)).lead_ns == pytest.approx(lead_ns, abs=1)


@pytest.mark.parametrize("schedule", [None, [], [5]])
def test_without_a_rate_nothing_is_watched_for(machine: Machine, schedule: list[int] | None) -> None:
    spin = Spin(schedule)
    assert spin.lead_ns == 0
    machine.rest(5)
    spin.tick(SECOND_NS)
    spin.tick(3 * SECOND_NS)
    assert spin.lead_ns == 0


def test_a_machine_that_has_no_idle_time_left_is_left_to_those_who_want_it(machine: Machine) -> None:
    spin = Spin(every(500_000))
    leads: list[int] = []
    for number, idle_s in enumerate((0.9, 0.3, 0.02, 0.0, 0.4)):
        machine.rest(idle_s)
        spin.tick((number + 1) * SECOND_NS)
        leads.append(spin.lead_ns)
    assert [bool(lead) for lead in leads] == [True, True, False, False, True]


def test_the_machine_is_looked_at_twice_a_second(machine: Machine) -> None:
    spin = Spin(every(500_000))
    spin.tick(SECOND_NS)
    for number in range(1, 5):
        spin.tick(SECOND_NS + number * TICK_NS)
        assert spin.lead_ns, "half a second has not gone by"
    spin.tick(SECOND_NS + 5 * TICK_NS)
    assert not spin.lead_ns
    machine.rest(1)
    spin.tick(SECOND_NS + 10 * TICK_NS)
    assert spin.lead_ns


@pytest.mark.parametrize("content", [None, "", "12.5", "nonsense and more"])
def test_a_system_that_does_not_say_how_idle_it_is_is_not_spun_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "uptime"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(waking, "_UPTIME", path)
    spin = Spin(every(500_000))
    assert spin.lead_ns == 0
    spin.tick(SECOND_NS)
    spin.tick(2 * SECOND_NS)
    assert spin.lead_ns == 0


def asked_and_answered(requests: int, schedule: list[int] | None, slots: int = 1) -> int:
    """Run requests against a server that answers each; return the time spent awake before them."""

    def script(server: Server) -> Script:
        lines = [server.accept()]
        answered = 0
        while answered < requests:
            for line in [line for line in lines if line.heard()]:
                answered += 1
                yield from line.say(counted(b"hello"))
            another = server.knock()
            if another is not None:
                lines.append(another)
            yield False

    with stage() as stg:
        taken = stg.play(script, requests=requests, schedule=schedule, slots=slots)
    assert sorted(taken.ends) == [(request, "WHOLE") for request in range(requests)]
    return taken.capture.spin.spent_ns


def test_an_open_loop_stays_awake_before_due_requests_and_counts_it_apart(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough that even a busy machine lets the capture wake within it.
    monkeypatch.setattr(waking, "_SPIN_NS", 20_000_000)
    assert machine.idle_s
    spent_ns = asked_and_answered(5, every(60_000_000)[:5], slots=0)
    assert 0 < spent_ns <= 5 * 20_100_000


def test_a_closed_loop_never_stays_awake(machine: Machine) -> None:
    assert machine.idle_s
    assert asked_and_answered(20, None) == 0
    assert asked_and_answered(10, every(2_000_000)[:10]) == 0

"""What every intake, request store, job queue and event log promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import cast

import pytest
from tests.contract.gateway_stores.harness import (
    LEASE_NS,
    TEAM,
    USER,
    Place,
    Stores,
    acceptance,
    charge,
    limit,
    new_id,
    reserve,
)

from tokenweir.core.events import Accepted, Completed, Event, Queued, Token
from tokenweir.ports.eventlog import Append
from tokenweir.ports.intake import Conflict, Repeated, Taken
from tokenweir.ports.queue import Delivery, Job
from tokenweir.ports.quota import Denied
from tokenweir.ports.requests import Resealing

Story = Callable[[Stores], Awaitable[None]]


def tell(place: Place, *stories: Story) -> None:
    """Run each story on freshly opened adapters over the same data."""

    async def run(story: Story) -> None:
        async with asyncio.timeout(60), place.open() as stores:
            await story(stores)

    for story in stories:
        asyncio.run(run(story))


def closing(
    deliveries: AsyncIterator[Delivery],
) -> aclosing[AsyncGenerator[Delivery]]:
    """Close an iterator of deliveries at the end, which gives back what is not acknowledged."""
    return aclosing(cast("AsyncGenerator[Delivery]", deliveries))


class IntakeContract:
    """Subclasses give the fixture ``place``."""

    def test_what_is_taken_on_is_reserved_kept_and_queued(self, place: Place) -> None:
        day = limit("tokens", "day", 1000)
        wanted = acceptance(reserve(day), body=b'{"a":1}', priority=4)

        async def before(stores: Stores) -> None:
            (outcome,) = await stores.intake.accept([wanted])
            assert isinstance(outcome, Taken)
            assert outcome.request == wanted.reserve.request
            await stores.published()

        async def after(stores: Stores) -> None:
            record = await stores.requests.get(wanted.reserve.request)
            assert record is not None
            assert (record.body, record.mode, record.lane, record.attempt) == (b'{"a":1}', "stream", 3, 0)
            assert (record.user, record.team, record.ended_at) == (USER, TEAM, None)
            (left,) = await stores.quota.use([day])
            assert left.remaining == 900
            async with closing(stores.queue.deliveries(prefetch=1)) as deliveries:
                delivery = await anext(deliveries)
            assert delivery.job.request == wanted.reserve.request
            assert (delivery.job.lane, delivery.job.priority) == (3, 4)

        tell(place, before, after)

    def test_a_refused_request_leaves_nothing(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            wanted = acceptance(reserve(limit("tokens", "day", 10)), idempotency="once")
            (outcome,) = await stores.intake.accept([wanted])
            assert isinstance(outcome, Denied)
            assert await stores.requests.get(wanted.reserve.request) is None
            await stores.published()
            assert (await stores.queue.depth()).ready == 0
            assert await stores.requests.history(USER, before=None, limit=10) == []

        tell(place, story)

    def test_the_same_key_and_body_is_the_same_request(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            day = limit("tokens", "day", 1000)
            first, again, other = (
                acceptance(reserve(day), idempotency="once", body=body) for body in (b"a", b"a", b"b")
            )
            outcomes = [
                *await stores.intake.accept([first, again]),
                *await stores.intake.accept([again, other]),
            ]
            assert [type(outcome) for outcome in outcomes] == [Taken, Repeated, Repeated, Conflict]
            assert {outcome.request for outcome in outcomes} == {first.reserve.request}
            (left,) = await stores.quota.use([day])
            assert left.remaining == 900
            await stores.published()
            assert (await stores.queue.depth()).ready == 1

        tell(place, story)

    def test_concurrent_acceptances_of_one_key_are_one_request(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            requests: set[bytes] = set()

            async def submit() -> None:
                (outcome,) = await stores.intake.accept([acceptance(reserve(), idempotency="same")])
                assert isinstance(outcome, Taken | Repeated)
                requests.add(outcome.request)

            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(submit())
            assert len(requests) == 1

        tell(place, story)

    def test_an_accepted_request_keeps_its_reservation_until_it_has_ended(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            day = limit("tokens", "day", 1000)
            waits = acceptance(reserve(day, lease_ns=1))
            await stores.intake.accept([waits])
            if place.clock is not None:
                place.clock.advance(10)
            assert list(await stores.quota.expired(10)) == []
            assert [left.remaining for left in await stores.quota.use([day])] == [900]

        tell(place, story)

    def test_a_body_that_has_changed_is_not_sealed_over(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            assert isinstance(stores.requests, Resealing)
            stays, erased = (acceptance(reserve(), body=b"{}") for _ in range(2))
            names = [each.reserve.request for each in (stays, erased)]
            await stores.intake.accept([stays, erased])
            before = await stores.requests.unlike(b"new", 9)
            assert {record.body for record in before if record.request in names} == {b"{}"}
            await stores.requests.replace([(names[1], b"gone", b"")])
            await stores.requests.reseal([(record.request, record.body, b"new", b"") for record in before])
            found = await stores.requests.find(names)
            assert [found[name].body for name in names] == [b"new", b"gone"]

        tell(place, story)

    def test_only_one_claims_an_attempt(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            wanted = acceptance(reserve())
            await stores.intake.accept([wanted])
            claims: list[object] = []

            async def claim() -> None:
                claims.append(
                    await stores.requests.claim(wanted.reserve.request, attempt=1, lease_ns=LEASE_NS)
                )

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(claim())
            assert sum(claim is not None for claim in claims) == 1
            assert await stores.requests.claim(wanted.reserve.request, attempt=3, lease_ns=1) is None
            assert await stores.requests.claim(wanted.reserve.request, attempt=2, lease_ns=1) is not None

        tell(place, story)

    def test_leases_are_renewed_until_lost_or_cancelled(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            mine, lost, stopped = (acceptance(reserve()) for _ in range(3))
            await stores.intake.accept([mine, lost, stopped])
            held = [each.reserve.request for each in (mine, lost, stopped)]
            for request in held:
                await stores.requests.claim(request, attempt=1, lease_ns=LEASE_NS)
            await stores.requests.claim(held[1], attempt=2, lease_ns=LEASE_NS)
            record = await stores.requests.cancel(held[2])
            assert record is not None
            assert record.cancel_at is not None
            gone = await stores.requests.renew([(request, 1) for request in held], LEASE_NS)
            assert set(gone) == {held[1], held[2]}
            assert await stores.requests.cancel(new_id()) is None

        tell(place, story)

    def test_an_ended_request_keeps_its_log_and_cannot_be_claimed(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            wanted = acceptance(reserve(limit("tokens", "day", 1000)))
            (outcome,) = await stores.intake.accept([wanted])
            assert isinstance(outcome, Taken)
            await stores.requests.claim(wanted.reserve.request, attempt=1, lease_ns=LEASE_NS)
            end = charge(wanted.reserve, outcome.at, last_seq=7, log=b"sealed")
            assert list(await stores.ledger.settle([end])) == [True]
            record = await stores.requests.get(wanted.reserve.request)
            assert record is not None
            assert (record.log, record.last_seq, record.ended_at) == (b"sealed", 7, end.row.settled_at)
            assert await stores.requests.claim(wanted.reserve.request, attempt=2, lease_ns=1) is None

        tell(place, story)

    def test_many_are_found_at_once(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            wanted = [acceptance(reserve(), body=b"%d" % number) for number in range(3)]
            outcomes = await stores.intake.accept(wanted)
            first, *others = [each.reserve.request for each in wanted]
            (taken,) = [each for each in outcomes if isinstance(each, Taken) and each.request == first]
            await stores.requests.claim(first, attempt=1, lease_ns=LEASE_NS)
            await stores.ledger.settle([charge(wanted[0].reserve, taken.at, last_seq=7, log=b"sealed")])
            found = await stores.requests.find([*others, first, new_id()])
            assert set(found) == {first, *others}
            assert [found[each.reserve.request].body for each in wanted] == [b"0", b"1", b"2"]
            assert (found[first].attempt, found[first].last_seq, found[first].log) == (1, 7, b"")

        tell(place, story)

    def test_history_is_the_users_own_newest_first(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            ids = [bytes([number]) * 16 for number in range(1, 6)]
            await stores.intake.accept([acceptance(reserve(request=request)) for request in ids])
            page = await stores.requests.history(USER, before=None, limit=3)
            assert [record.request for record in page] == ids[:1:-1]
            assert all(record.body == b"" for record in page)
            rest = await stores.requests.history(USER, before=page[-1].request, limit=3)
            assert [record.request for record in rest] == ids[1::-1]
            assert await stores.requests.history(b"x" * 16, before=None, limit=3) == []

        tell(place, story)


class QueueContract:
    """Subclasses give the fixture ``place``."""

    def test_each_job_is_delivered_and_acknowledged_once(self, place: Place) -> None:
        jobs = [Job(request=new_id(), lane=number) for number in range(50)]

        async def first(stores: Stores) -> None:
            await stores.queue.publish(jobs)
            taken: list[Delivery] = []

            async def work() -> None:
                async with closing(stores.queue.deliveries(prefetch=5)) as deliveries:
                    async for delivery in deliveries:
                        taken.append(delivery)
                        await stores.queue.acknowledge([delivery])
                        if len(taken) >= len(jobs):
                            return

            async with asyncio.TaskGroup() as group:
                worker = group.create_task(work())
            assert worker.done()
            assert sorted(delivery.job.request for delivery in taken) == sorted(job.request for job in jobs)

        async def second(stores: Stores) -> None:
            depth = await stores.queue.depth()
            assert (depth.ready, depth.unacknowledged, depth.dead) == (0, 0, 0)

        tell(place, first, second)

    def test_no_more_is_out_than_the_prefetch(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            await stores.queue.publish([Job(request=new_id(), lane=0) for _ in range(4)])
            async with closing(stores.queue.deliveries(prefetch=2)) as deliveries:
                first, _ = [await anext(deliveries) for _ in range(2)]
                asking = asyncio.ensure_future(anext(deliveries))
                done, _ = await asyncio.wait([asking], timeout=0.1)
                assert not done
                await stores.queue.acknowledge([first])
                await asking

        tell(place, story)

    def test_what_is_not_acknowledged_comes_again(self, place: Place) -> None:
        job = Job(request=new_id(), lane=0)

        async def lost(stores: Stores) -> None:
            await stores.queue.publish([job])
            async with closing(stores.queue.deliveries(prefetch=1)) as deliveries:
                assert (await anext(deliveries)).job == job

        async def found(stores: Stores) -> None:
            async with closing(stores.queue.deliveries(prefetch=1)) as deliveries:
                delivery = await anext(deliveries)
                assert delivery.job == job
                await stores.queue.acknowledge([delivery])

        tell(place, lost, found)

    def test_a_higher_priority_goes_first(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            jobs = [Job(request=new_id(), lane=0, priority=priority) for priority in (0, 5, 9)]
            await stores.queue.publish(jobs)
            async with closing(stores.queue.deliveries(prefetch=3)) as deliveries:
                order = [(await anext(deliveries)).job.priority for _ in range(3)]
            assert order == [9, 5, 0]

        tell(place, story)

    def test_a_delayed_job_waits_and_comes(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            later = Job(request=new_id(), lane=0, attempt=2, errors=("first",))
            now = Job(request=new_id(), lane=0)
            await stores.queue.publish([later], delay_ns=300_000_000)
            await stores.queue.publish([now])
            async with closing(stores.queue.deliveries(prefetch=2)) as deliveries:
                assert (await anext(deliveries)).job == now
                if place.clock is not None:
                    place.clock.advance(400_000_000)
                assert (await anext(deliveries)).job == later

        tell(place, story)

    def test_what_is_given_up_is_kept_shown_replayed_and_dropped(self, place: Place) -> None:
        jobs = [Job(request=new_id(), lane=0) for _ in range(2)]

        async def bury(stores: Stores) -> None:
            await stores.queue.publish(jobs)
            async with closing(stores.queue.deliveries(prefetch=2)) as deliveries:
                for _ in jobs:
                    await stores.queue.bury(await anext(deliveries), "no such model")

        async def replay(stores: Stores) -> None:
            dead = await stores.queue.dead(limit=10)
            assert {job.request for job in dead} == {job.request for job in jobs}
            assert all(job.errors == ("no such model",) for job in dead)
            # A count may lag behind what was looked at and given back.
            async with asyncio.timeout(10):
                while (await stores.queue.depth()).dead != 2:
                    pass
            assert await stores.queue.replay(jobs[0].request)
            assert not await stores.queue.replay(jobs[0].request)
            assert await stores.queue.drop(jobs[1].request)
            assert not await stores.queue.drop(jobs[1].request)
            async with closing(stores.queue.deliveries(prefetch=1)) as deliveries:
                delivery = await anext(deliveries)
            assert (delivery.job.request, delivery.job.attempt) == (jobs[0].request, 2)
            assert await stores.queue.dead(limit=10) == []

        tell(place, bury, replay)


def _tokens(first: int, count: int) -> tuple[Event, ...]:
    return tuple(Token(seq=seq, text=f"t{seq}") for seq in range(first, first + count))


class EventLogContract:
    """Subclasses give the fixture ``place``."""

    def test_events_are_read_from_any_seq_and_outlive_the_process(self, place: Place) -> None:
        request = new_id()
        written: tuple[Event, ...] = (Accepted(seq=0), Queued(seq=1), *_tokens(2, 5))

        async def write(stores: Stores) -> None:
            await stores.events.append([Append(request=request, lane=1, attempt=0, events=written[:2])])
            await stores.events.append([Append(request=request, lane=1, attempt=1, events=written[2:])])
            assert tuple(await stores.events.read(request, 1)) == written

        async def read(stores: Stores) -> None:
            for after in (-1, 0, 3, 6):
                assert tuple(await stores.events.read(request, 1, after=after)) == written[after + 1 :]
            assert await stores.events.read(new_id(), 1) == []

        tell(place, write, read)

    def test_a_seq_that_is_there_is_ignored(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            request = new_id()
            await stores.events.append([Append(request=request, lane=1, attempt=1, events=_tokens(0, 4))])
            await stores.events.append([Append(request=request, lane=1, attempt=1, events=_tokens(2, 4))])
            assert tuple(await stores.events.read(request, 1)) == _tokens(0, 6)

        tell(place, story)

    @pytest.mark.parametrize("after", [-1, 2])
    def test_followers_see_all_in_order_and_then_the_end(self, place: Place, after: int) -> None:
        async def story(stores: Stores) -> None:
            request = new_id()
            seen: list[list[Event]] = [[], [], []]
            started = asyncio.Barrier(len(seen) + 1)

            async def follow(into: list[Event]) -> None:
                await started.wait()
                async for events in stores.events.follow(request, 1, after=after):
                    into.extend(events)

            async def write() -> None:
                await started.wait()
                for seq in range(20):
                    await stores.events.append(
                        [Append(request=request, lane=1, attempt=1, events=_tokens(seq, 1))]
                    )
                end = (Completed(seq=20, finish_reason="stop"),)
                await stores.events.append([Append(request=request, lane=1, attempt=1, events=end)])

            async with asyncio.TaskGroup() as group:
                for into in seen:
                    group.create_task(follow(into))
                group.create_task(write())
            for into in seen:
                assert [event.seq for event in into] == list(range(after + 1, 21))

        tell(place, story)

    def test_an_older_attempt_is_fenced_off(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            wanted = acceptance(reserve())
            await stores.intake.accept([wanted])
            request, lane = wanted.reserve.request, wanted.lane
            await stores.requests.claim(request, attempt=1, lease_ns=1)
            await stores.requests.claim(request, attempt=2, lease_ns=LEASE_NS)
            stale: Sequence[Append] = [Append(request=request, lane=lane, attempt=1, events=_tokens(0, 3))]
            fresh: Sequence[Append] = [
                Append(request=request, lane=lane, attempt=2, events=(Token(seq=0, text="fresh"),))
            ]
            await stores.events.append(stale)
            await stores.events.append(fresh)
            assert tuple(await stores.events.read(request, lane)) == (Token(seq=0, text="fresh"),)

        tell(place, story)

    def test_what_a_lost_worker_still_writes_counts_for_nobody(self, place: Place) -> None:
        wanted = acceptance(reserve())
        request, lane = wanted.reserve.request, wanted.lane
        said: tuple[Event, ...] = (
            *_tokens(0, 3),
            Token(seq=3, text="mine"),
            Completed(seq=4, finish_reason="stop"),
        )

        async def story(stores: Stores) -> None:
            await stores.intake.accept([wanted])
            await stores.requests.claim(request, attempt=1, lease_ns=1)
            await stores.events.append([Append(request=request, lane=lane, attempt=1, events=_tokens(0, 3))])
            await stores.requests.claim(request, attempt=2, lease_ns=LEASE_NS)
            # From here on nothing of the first attempt counts, so that what is read now stands.
            await stores.events.append([Append(request=request, lane=lane, attempt=2, events=())])
            assert tuple(await stores.events.read(request, lane)) == said[:3]
            # The lost one had asked whether it may write a moment before.
            await stores.events.append([Append(request=request, lane=lane, attempt=1, events=_tokens(3, 2))])
            await stores.events.append([Append(request=request, lane=lane, attempt=2, events=said[3:])])
            assert tuple(await stores.events.read(request, lane)) == said
            assert [
                event async for some in stores.events.follow(request, lane, after=2) for event in some
            ] == [*said[3:]]

        async def afterwards(stores: Stores) -> None:
            assert tuple(await stores.events.read(request, lane)) == said

        tell(place, story, afterwards)

    def test_a_filed_log_is_forgotten(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            request, other = new_id(), new_id()
            for each in (request, other):
                await stores.events.append([Append(request=each, lane=1, attempt=1, events=_tokens(0, 3))])
            await stores.events.forget([(request, 1)])
            assert await stores.events.read(request, 1) == []
            assert len(await stores.events.read(other, 1)) == 3

        tell(place, story)

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.access.directory import Directory, StoredLimit, Tier
from tokenweir.access.keyring import STALE_NS, CachedKeyring
from tokenweir.access.keys import digest_of, id_of, make_key, recognised
from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import InputError, NotFoundError, RecordError, UnauthorizedError
from tokenweir.ports.access import Caller

SECOND = 1_000_000_000


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def directory(tmp_path: Path, clock: VirtualClock) -> Iterator[Directory]:
    directory = Directory(f"sqlite:///{tmp_path / 'access.db'}", clock)
    yield directory
    directory.close()


def find(directory: Directory, text: str) -> Caller | None:
    found = directory.find(id_of(text))
    return found[1] if found is not None and recognised(text, found[0]) else None


def test_a_key_is_recognised_by_its_digest_alone() -> None:
    made = make_key()
    assert made.text.startswith("weir_")
    assert id_of(made.text) == made.id
    assert recognised(made.text, made.digest)
    assert not recognised(make_key().text, made.digest)


@given(st.text(max_size=80))
def test_what_is_no_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        id_of(f"weir-{text}")
    assert text not in str(caught.value) or len(text) < 8


def test_the_key_itself_is_nowhere_in_the_store(tmp_path: Path, directory: Directory) -> None:
    directory.add_user("ada")
    _, text = directory.issue("ada", "laptop")
    directory.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert text.encode() not in stored
    assert text[-27:].encode() not in stored
    assert digest_of(text) in stored


def test_a_caller_carries_scopes_models_tier_and_limits(directory: Directory) -> None:
    directory.set_tier(Tier(name="gold", priority=8, pool="fast"))
    team = directory.add_team("research", tier="gold")
    user = directory.add_user("ada", team="research")
    key, text = directory.issue("ada", "laptop", models=("small",))
    day = StoredLimit(scope="key", subject=key.id, unit="tokens", window="day", amount=10)
    directory.set_limit(day)
    directory.set_limit(msgspec.structs.replace(day, scope="team", subject=team.id, amount=1000))
    directory.set_limit(msgspec.structs.replace(day, scope="tier", subject=b"gold", amount=100))
    caller = find(directory, text)
    assert caller is not None
    assert (caller.user, caller.team, caller.tier, caller.priority, caller.pool) == (
        user.id,
        team.id,
        "gold",
        8,
        "fast",
    )
    assert caller.may("infer")
    assert not caller.may("admin")
    assert caller.may_ask("small")
    assert not caller.may_ask("large")
    assert {(limit.scope, limit.amount) for limit in caller.limits} == {
        ("key", 10),
        ("team", 1000),
        ("user", 100),
    }


def test_a_users_own_limit_replaces_the_tiers(directory: Directory) -> None:
    directory.set_tier(Tier(name="gold"))
    user = directory.add_user("ada", tier="gold")
    _, text = directory.issue("ada", "laptop")
    directory.set_limit(StoredLimit(scope="tier", subject=b"gold", unit="tokens", window="day", amount=100))
    own = StoredLimit(scope="user", subject=user.id, unit="tokens", window="day", amount=7)
    directory.set_limit(own)
    caller = find(directory, text)
    assert caller is not None
    assert [limit.amount for limit in caller.limits] == [7]
    assert directory.remove_limit(own)
    assert not directory.remove_limit(own)
    caller = find(directory, text)
    assert caller is not None
    assert [limit.amount for limit in caller.limits] == [100]


def test_keys_expire_are_revoked_and_follow_their_user(directory: Directory, clock: VirtualClock) -> None:
    directory.add_user("ada")
    _, short = directory.issue("ada", "short", lifetime_ns=5 * SECOND)
    key, revoked = directory.issue("ada", "revoked")
    _, kept = directory.issue("ada", "kept")
    directory.revoke(key.id)
    assert [find(directory, text) is None for text in (short, revoked, kept)] == [False, True, False]
    clock.advance(5 * SECOND)
    assert find(directory, short) is None
    directory.disable_user("ada")
    assert find(directory, kept) is None
    directory.disable_user("ada", disabled=False)
    assert find(directory, kept) is not None


def test_a_revoked_key_is_not_let_in_again_by_rotating_it(directory: Directory, clock: VirtualClock) -> None:
    directory.add_user("ada")
    key, text = directory.issue("ada", "lost")
    directory.revoke(key.id)
    clock.advance(SECOND)
    _, new = directory.rotate(key.id, overlap_ns=10 * SECOND)
    assert [find(directory, each) is None for each in (text, new)] == [True, False]
    # What is to be refused later may still be refused at once.
    other, text = directory.issue("ada", "other")
    directory.revoke(other.id, after_ns=10 * SECOND)
    assert find(directory, text) is not None
    directory.revoke(other.id)
    assert find(directory, text) is None


def test_a_rotated_key_overlaps_and_keeps_its_rights(directory: Directory, clock: VirtualClock) -> None:
    directory.add_user("ada")
    key, old = directory.issue("ada", "ci", scopes=("infer",), models=("m",))
    directory.set_limit(StoredLimit(scope="key", subject=key.id, unit="requests", window="minute", amount=3))
    _, new = directory.rotate(key.id, overlap_ns=10 * SECOND)
    for text in (old, new):
        caller = find(directory, text)
        assert caller is not None
        assert (caller.models, caller.limits[0].amount) == (("m",), 3)
    clock.advance(10 * SECOND)
    assert find(directory, old) is None
    assert find(directory, new) is not None


def test_bad_names_scopes_and_lifetimes_are_refused_with_the_mend(directory: Directory) -> None:
    directory.add_user("ada")
    with pytest.raises(InputError, match="already"):
        directory.add_user("ada")
    with pytest.raises(InputError, match="choose of infer, read, run, admin"):
        directory.issue("ada", "k", scopes=("fly",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="positive"):
        directory.issue("ada", "k", lifetime_ns=0)
    with pytest.raises(InputError, match="0 to 9"):
        directory.set_tier(Tier(name="t", priority=10))
    for bad in ("", " x", "a\nb", "x" * 200):
        with pytest.raises(InputError, match="no name for a team"):
            directory.add_team(bad)
    with pytest.raises(NotFoundError, match="no user 'eve'"):
        directory.issue("eve", "k")
    with pytest.raises(NotFoundError, match="no team 'x'"):
        directory.add_user("bob", team="x")
    assert [user.name for user in directory.users()] == ["ada"]


def test_the_keyring_asks_the_directory_once_and_learns_of_changes(directory: Directory) -> None:
    directory.add_user("ada")
    key, text = directory.issue("ada", "laptop")

    async def story() -> None:
        keyring = CachedKeyring(directory)
        assert keyring.cached(text) is None
        await keyring.look()
        caller = await keyring.authenticate(text)
        assert keyring.cached(text) == caller
        directory.revoke(key.id)
        await keyring.look()
        assert keyring.cached(text) is None
        with pytest.raises(UnauthorizedError, match="revoked"):
            await keyring.authenticate(text)
        with pytest.raises(UnauthorizedError):
            await keyring.authenticate(make_key().text)

    asyncio.run(story())


class GatedDirectory(Directory):
    """Answers when it is let, and counts how often it is asked."""

    def __init__(self, url: str, clock: VirtualClock) -> None:
        super().__init__(url, clock)
        self.asked = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self.times = 0

    def find(self, key: bytes) -> tuple[bytes, Caller, int | None] | None:
        self.times += 1
        self.asked.release()
        assert self.let.acquire(timeout=30)
        return super().find(key)


def test_many_who_show_one_key_at_once_have_the_directory_asked_once(
    tmp_path: Path, clock: VirtualClock
) -> None:
    directory = GatedDirectory(f"sqlite:///{tmp_path / 'access.db'}", clock)
    directory.add_user("ada")
    _, text = directory.issue("ada", "laptop")
    unknown = make_key().text

    async def story() -> None:
        keyring = CachedKeyring(directory, clock)
        await keyring.look()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(keyring.authenticate(text))
            await asyncio.to_thread(directory.asked.acquire, timeout=30)
            others = [group.create_task(keyring.authenticate(text)) for _ in range(50)]
            await asyncio.sleep(0)
            # Who asked for all of them leaves: one of the others asks, once.
            first.cancel()
            directory.let.release(2)
        assert {other.result().key for other in others} == {id_of(text)}
        assert directory.times == 2

        directory.let.release()

        async def is_refused() -> None:
            with pytest.raises(UnauthorizedError):
                await keyring.authenticate(unknown)

        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(is_refused())
        assert directory.times == 3

    asyncio.run(story())
    directory.close()


def test_a_cache_that_was_not_confirmed_is_not_believed(directory: Directory, clock: VirtualClock) -> None:
    directory.add_user("ada")
    _, text = directory.issue("ada", "laptop", lifetime_ns=3600 * SECOND)

    async def story() -> None:
        keyring = CachedKeyring(directory, clock)
        await keyring.look()
        await keyring.authenticate(text)
        assert keyring.cached(text) is not None
        clock.advance(STALE_NS + 1)
        assert keyring.cached(text) is None
        await keyring.look()
        assert keyring.cached(text) is not None
        clock.advance(3600 * SECOND)
        await keyring.look()
        assert keyring.cached(text) is None

    asyncio.run(story())


def test_a_revoked_key_is_out_within_a_second_of_a_running_watch(directory: Directory) -> None:
    directory.add_user("ada")
    key, text = directory.issue("ada", "laptop")

    async def story() -> None:
        keyring = CachedKeyring(directory)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(keyring.watch())
            await keyring.look()
            await keyring.authenticate(text)
            changed = keyring.changed
            await asyncio.to_thread(directory.revoke, key.id)
            async with asyncio.timeout(10):
                await changed.wait()
            assert keyring.cached(text) is None
            watch.cancel()

    asyncio.run(story())


def test_a_newer_store_is_refused(tmp_path: Path, directory: Directory) -> None:
    directory.close()
    connection = sqlite3.connect(tmp_path / "access.db")
    connection.execute("UPDATE alembic_access SET version_num = 'access9999'")
    connection.commit()
    connection.close()
    with pytest.raises(RecordError, match="does not know"):
        Directory(f"sqlite:///{tmp_path / 'access.db'}")

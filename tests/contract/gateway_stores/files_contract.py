"""What every store of files and of batches does."""

from __future__ import annotations

import msgspec
from tests.contract.gateway_stores.harness import new_id

from tokenweir.ports.batches import Batches, BatchRecord
from tokenweir.ports.files import Earlier, FileRecord, FileStore, Kept

LEASE_NS = 60_000_000_000


def file_of(
    user: bytes, *, file: bytes = b"", key: str = "", digest: bytes = b"d" * 32, **more: object
) -> FileRecord:
    fields: dict[str, object] = {"name": "a.jsonl", "purpose": "batch", "size": 5, "at": 7, **more}
    return FileRecord(file=file or new_id(), user=user, idempotency=key, digest=digest, **fields)  # pyright: ignore[reportArgumentType]


async def write(store: FileStore, record: FileRecord, *pieces: bytes) -> object:
    await store.begin(record.file, record.user, record.at)
    for place, piece in enumerate(pieces):
        await store.append(record.file, place, piece)
    return await store.keep(record)


async def files_are_seen_whole_and_by_pieces(store: FileStore) -> None:
    user = new_id()
    record = file_of(user, expires_at=99)
    await store.begin(record.file, user, 7)
    await store.append(record.file, 0, b"abc")
    assert await store.get(record.file) is None
    assert await store.listed(user, limit=9) == []
    assert await store.stored(user) == 0
    # Begun anew, nothing of before is left.
    assert await write(store, record, b"one", b"\x00two") == Kept(record=record)
    assert await store.get(record.file) == record
    assert [await store.piece(record.file, place) for place in range(3)] == [b"one", b"\x00two", None]
    assert await store.stored(user) == 5
    assert await store.remove(record.file)
    assert not await store.remove(record.file)
    assert await store.piece(record.file, 0) is None


async def files_are_listed_in_order(store: FileStore) -> None:
    user = new_id()
    made = sorted(
        [file_of(user, purpose=purpose) for purpose in ("batch", "user_data", "batch")], key=lambda r: r.file
    )
    for record in (*made, file_of(new_id())):
        await write(store, record)
    assert await store.listed(user, limit=9) == made[::-1]
    assert await store.listed(user, limit=2, newest=False) == made[:2]
    assert await store.listed(user, limit=9, after=made[1].file) == made[:1]
    assert await store.listed(user, limit=9, after=made[1].file, newest=False) == made[2:]
    assert await store.listed(user, limit=9, purpose="user_data") == [
        r for r in made if r.purpose == "user_data"
    ]


async def a_key_has_one_file(store: FileStore) -> None:
    user = new_id()
    first = file_of(user, key="k")
    assert await write(store, first, b"x") == Kept(record=first)
    again, other = file_of(user, key="k"), file_of(user, key="k", digest=b"o" * 32)
    assert await write(store, again, b"x") == Earlier(record=first, same=True)
    assert await write(store, other, b"y") == Earlier(record=first, same=False)
    assert await store.piece(again.file, 0) is None
    assert await store.listed(user, limit=9) == [first]
    foreign = file_of(new_id(), key="k")
    assert await write(store, foreign) == Kept(record=foreign)


async def what_expired_or_was_never_kept_is_swept(store: FileStore) -> None:
    user = new_id()
    stays, gone, unkept = file_of(user, expires_at=200), file_of(user, expires_at=100), file_of(user)
    await write(store, stays)
    await write(store, gone, b"x")
    await store.begin(unkept.file, user, 50)
    await store.append(unkept.file, 0, b"x")
    assert await store.sweep(now=100, begun_before=50) == 1
    assert await store.piece(unkept.file, 0) == b"x"
    assert await store.sweep(now=100, begun_before=51) == 1
    assert await store.piece(unkept.file, 0) is None
    assert await store.listed(user, limit=9) == [stays]


async def pieces_are_put_in_the_place_of_others(store: FileStore) -> None:
    record = file_of(new_id())
    await write(store, record, b"old one", b"new two", b"old three")
    found = sorted(await store.unlike(b"new", 9))
    assert [(file, place) for file, place, _ in found if file == record.file] == [
        (record.file, 0),
        (record.file, 2),
    ]
    await store.replace([(file, place, b"new" + data) for file, place, data in found])
    assert [await store.piece(record.file, place) for place in range(3)] == [
        b"newold one",
        b"new two",
        b"newold three",
    ]
    assert await store.unlike(b"new", 9) == []


def batch_of(user: bytes, *, key: str = "", digest: bytes = b"d" * 32, at: int = 5) -> BatchRecord:
    return BatchRecord(
        batch=new_id(), user=user, key=new_id(), at=at, digest=digest, state=b"begun", idempotency=key
    )


async def batches_are_found_by_their_owner(store: Batches) -> None:
    user = new_id()
    made = sorted([batch_of(user), batch_of(user), batch_of(user, key="k")], key=lambda record: record.batch)
    for record in (*made, batch_of(new_id(), key="k")):
        assert await store.create(record) == record
    keyed = next(record for record in made if record.idempotency)
    assert await store.create(batch_of(user, key="k", digest=b"o" * 32)) == keyed
    assert await store.get(made[0].batch) == made[0]
    assert await store.get(new_id()) is None
    assert await store.listed(user, after=None, limit=2) == made[:0:-1]
    assert await store.listed(user, after=made[1].batch, limit=2) == made[:1]
    assert await store.open() >= len(made)


async def states_are_put_in_the_place_of_others(store: Batches) -> None:
    made = [batch_of(new_id()), batch_of(new_id())]
    for record in made:
        await store.create(record)
    found = dict(await store.unlike(b"new", 99))
    assert {found[record.batch] for record in made} == {b"begun"}
    # What a worker has stored meanwhile is not put back.
    worker = new_id()
    await store.claim(worker, lease_ns=60_000_000_000, most=99)
    assert await store.save(msgspec.structs.replace(made[1], state=b"ended"), worker)
    await store.replace([(batch, state, b"new" + state) for batch, state in found.items()])
    changed = await store.get(made[0].batch)
    assert changed is not None
    assert changed.state == b"newbegun"
    assert await store.unlike(b"new", 99) == [(made[1].batch, b"ended")]


async def a_batch_has_one_worker_at_a_time(store: Batches) -> None:
    first, second = new_id(), new_id()
    made = [batch_of(new_id(), at=1), batch_of(new_id(), at=2), batch_of(new_id(), at=3)]
    for record in made:
        await store.create(record)
    held = {record.batch for record in await store.claim(first, lease_ns=LEASE_NS, most=2)}
    assert held == {record.batch for record in made[:2]}
    assert [record.batch for record in await store.claim(second, lease_ns=LEASE_NS, most=9)] == [
        made[2].batch
    ]
    still = await store.open()
    await store.cancel(made[0].batch, 8)
    await store.cancel(made[0].batch, 9)
    again = {record.batch: record for record in await store.claim(first, lease_ns=LEASE_NS, most=2)}
    assert again[made[0].batch].cancel_at == 8
    changed = BatchRecord(**{**_fields(made[0]), "state": b"ended", "ended_at": 10})  # pyright: ignore[reportArgumentType]
    assert not await store.save(changed, second)
    assert await store.save(changed, first)
    ended = await store.get(made[0].batch)
    assert ended is not None
    assert (ended.state, ended.ended_at, ended.cancel_at) == (b"ended", 10, 8)
    assert await store.open() == still - 1
    await store.release(first)
    left = {record.batch for record in await store.claim(second, lease_ns=LEASE_NS, most=9)}
    assert left == {made[1].batch, made[2].batch}
    # A lease that has run out is anybody's.
    await store.claim(second, lease_ns=-1, most=9)
    assert {record.batch for record in await store.claim(first, lease_ns=LEASE_NS, most=9)} == left


def _fields(record: BatchRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in BatchRecord.__struct_fields__}


FILES = (
    files_are_seen_whole_and_by_pieces,
    files_are_listed_in_order,
    a_key_has_one_file,
    what_expired_or_was_never_kept_is_swept,
    pieces_are_put_in_the_place_of_others,
)
BATCHES = (
    batches_are_found_by_their_owner,
    a_batch_has_one_worker_at_a_time,
    states_are_put_in_the_place_of_others,
)

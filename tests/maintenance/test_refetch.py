"""REFETCH: what was evicted lies here again, byte for byte, or nothing has happened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.content import LiveMap, sign_live_map
from p2pstore.content.bundle import decode_signed_list, encode_header, trailer
from p2pstore.errors import Busy, IntegrityError, NoRoom, P2PStoreError, Unavailable
from p2pstore.maintenance import Refetcher
from p2pstore.store import BundleDamaged, BundleState, Part, blocks, copies
from p2pstore.wire import Get, GetList

from .nodes import Device, Filed, Group


class Evicted:
    """A device whose bundle lies with two others only."""

    def __init__(self, group: Group, a: Device, b: Device, c: Device, filed: Filed) -> None:
        self.group, self.a, self.b, self.c = group, a, b, c
        self.row = a.row(filed.data)
        self.path = a.bundles.path(self.row.bundle_id)
        self.was = self.path.read_bytes()
        self.free = 1 << 30
        self.refetcher = self.wire()

    def wire(self) -> Refetcher:
        return self.group.refetcher(self.a, free=lambda: self.free)

    async def evict(self) -> None:
        assert await self.a.evict(self.row) == {}
        assert not self.path.exists()
        self.row = self.a.row(self.row)

    async def refetch(self) -> None:
        await self.refetcher.refetch(self.row)

    def leftovers(self) -> list[Path]:
        return [p for p in (self.a.bundles.root / "open").iterdir() if p.is_file()]


async def kept_by_two(group: Group) -> Evicted:
    a, b, c = await group.devices(3)
    filed = a.protect("one")
    await a.copy_to(b, c)
    return Evicted(group, a, b, c, filed)


@pytest.fixture
async def evicted(group: Group) -> Evicted:
    made = await kept_by_two(group)
    await made.evict()
    return made


async def test_it_comes_back_byte_for_byte(evicted: Evicted) -> None:
    await evicted.refetch()
    assert evicted.path.read_bytes() == evicted.was
    row = evicted.a.row(evicted.row)
    assert row == evicted.row._replace(state=BundleState.SEALED)
    assert not evicted.leftovers()


async def test_it_may_be_evicted_and_come_back_again(evicted: Evicted) -> None:
    await evicted.refetch()
    await evicted.evict()
    await evicted.refetch()
    assert evicted.path.read_bytes() == evicted.was


async def test_it_can_be_given_to_a_third(evicted: Evicted) -> None:
    d = evicted.group.device("d")
    await evicted.a.knows(d)
    with pytest.raises(P2PStoreError):
        await evicted.a.pusher.push(evicted.row.bundle_id, evicted.row.tag, d.node_id)
    await evicted.refetch()
    await evicted.a.pusher.push(evicted.row.bundle_id, evicted.row.tag, d.node_id)
    assert d.held.has(evicted.row.bundle_id)


async def test_dead_blocks_stay_dead(group: Group) -> None:
    made = await kept_by_two(group)
    a, bundle_id = made.a, made.row.bundle_id
    live = LiveMap.all_live(bundle_id, made.row.blocks).without({1, 4})
    a.bundles.set_live_map(bundle_id, sign_live_map(live, a.key))
    a.bundles.punch(bundle_id)
    a.catalog.write(lambda db: blocks.set_live(db, made.row.id, live.seq, 5)).result()
    for holder in (made.b, made.c):
        a.replicator.retry(holder.node_id)
    await a.copy_to(made.b, made.c)
    made.row = a.row(made.row)
    wanted = a.bundles.read(bundle_id, live.indices())
    await made.evict()
    await made.refetch()
    assert a.bundles.live_map(bundle_id) == live
    assert a.bundles.read(bundle_id, live.indices()) == wanted
    assert await a.pusher.challenge(bundle_id, made.b.node_id, live.seq)


async def test_a_holder_that_knows_more_live_blocks_is_not_believed(evicted: Evicted) -> None:
    row = evicted.row._replace(seq=1)
    with pytest.raises(Unavailable, match="not heard yet"):
        await evicted.refetcher.refetch(row)
    assert not evicted.path.exists()


def known_by_hearsay(made: Evicted, *, seq: int) -> None:
    """As after a rebuild: a holder told of it, and may have told anything."""
    query = "UPDATE bundles SET blocks=0, seq=? WHERE id=?"
    made.a.catalog.write(lambda db: db.execute(query, (seq, made.row.id))).result()
    made.row = made.a.row(made.row)


async def test_a_number_that_only_a_holder_told_binds_nothing(evicted: Evicted) -> None:
    was = evicted.row
    known_by_hearsay(evicted, seq=1 << 40)
    await evicted.refetch()
    assert evicted.path.read_bytes() == evicted.was
    row = evicted.a.row(was)
    assert (row.state, row.blocks, row.seq) == (BundleState.SEALED, was.blocks, was.seq)


async def test_of_a_bundle_known_by_hearsay_the_newest_signed_list_counts(group: Group) -> None:
    made = await kept_by_two(group)
    a, bundle_id = made.a, made.row.bundle_id
    live = LiveMap.all_live(bundle_id, made.row.blocks).without({1, 4})
    a.bundles.set_live_map(bundle_id, sign_live_map(live, a.key))
    a.catalog.write(lambda db: blocks.set_live(db, made.row.id, live.seq, 5)).result()
    a.replicator.retry(made.c.node_id)
    await a.copy_to(made.c)
    stale = made.b.node_id  # asked first
    a.catalog.write(lambda db: copies.proved(db, made.row.id, stale, 0, 1 << 50)).result()
    a.bundles.to_trash(bundle_id)
    a.bundles.purge(bundle_id)
    query = "UPDATE bundles SET state='evicted' WHERE id=?"
    a.catalog.write(lambda db: db.execute(query, (made.row.id,))).result()
    known_by_hearsay(made, seq=0)
    await made.refetch()
    assert a.bundles.live_map(bundle_id) == live
    assert a.row(made.row).seq == live.seq


async def test_the_list_of_somebody_else_is_not_believed(
    evicted: Evicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first holder signs, under its own key, a list that names the same bundle."""
    real = evicted.a.pusher.block_list
    liar = SigningKey(b"liar".ljust(32, b"."))
    asked: list[bytes] = []

    async def lie(bundle_id: Any, holder: Any) -> Any:
        index, signed = await real(bundle_id, holder)
        asked.append(holder)
        if len(asked) > 1:
            return index, signed
        head = encode_header(
            type(index.header)(**{**_fields(index.header), "opener": bytes(liar.verify_key)})
        )
        return decode_signed_list(head + trailer(head, index.blocks, liar)[:-16]), None

    monkeypatch.setattr(evicted.a.pusher, "block_list", lie)
    await evicted.refetch()
    assert len(asked) == 2
    assert evicted.path.read_bytes() == evicted.was


def _fields(header: Any) -> dict[str, Any]:
    return {name: getattr(header, name) for name in header.__struct_fields__}


async def test_a_list_of_other_length_is_not_believed(evicted: Evicted) -> None:
    row = evicted.row._replace(blocks=evicted.row.blocks + 1)
    with pytest.raises(IntegrityError):
        await evicted.refetcher.refetch(row)


async def test_nothing_is_written_into_keep_free(evicted: Evicted) -> None:
    evicted.free = evicted.row.bytes - 1
    served = len(evicted.b.served)
    with pytest.raises(NoRoom):
        await evicted.refetch()
    assert len(evicted.b.served) == served
    evicted.free += 1
    await evicted.refetch()


async def test_without_the_blocks_nothing_has_happened(evicted: Evicted) -> None:
    for holder in (evicted.b, evicted.c):
        path = holder.held._files.path(evicted.row.bundle_id)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 4] ^= 1
        path.write_bytes(raw)
    with pytest.raises(Unavailable):
        await evicted.refetch()
    assert evicted.a.row(evicted.row).state == BundleState.EVICTED
    assert not evicted.path.exists()
    assert not evicted.leftovers()


async def test_what_the_disk_gives_back_wrongly_does_not_count(
    evicted: Evicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Part.write

    def bad_memory(part: Part, i: int, block: bytes) -> None:
        real(part, i, block if i != 2 else block[:-1] + bytes([block[-1] ^ 1]))

    monkeypatch.setattr(Part, "write", bad_memory)
    with pytest.raises(BundleDamaged):
        await evicted.refetch()
    assert evicted.a.row(evicted.row).state == BundleState.EVICTED
    assert not evicted.path.exists()


async def test_after_a_crash_before_the_row_nobody_is_asked_again(
    evicted: Evicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError("the machine stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(evicted.refetcher, "_take_up", crash)
        with pytest.raises(OSError, match="stopped"):
            await evicted.refetch()
    assert evicted.a.row(evicted.row).state == BundleState.EVICTED
    evicted.refetcher = evicted.wire()
    served = len(evicted.b.served) + len(evicted.c.served)
    await evicted.refetch()
    assert evicted.a.row(evicted.row).state == BundleState.SEALED
    assert len(evicted.b.served) + len(evicted.c.served) == served


async def test_what_a_crash_left_half_is_dropped_at_the_next_start(evicted: Evicted) -> None:
    evicted.a.bundles.part_path(evicted.row.bundle_id).write_bytes(b"half")
    evicted.wire()
    assert not evicted.leftovers()


async def test_what_an_evict_is_taking_away_is_left_alone(evicted: Evicted) -> None:
    evicted.a.promises.removals.add(evicted.row.bundle_id)
    with pytest.raises(Busy):
        await evicted.refetch()


async def test_two_at_once_are_one(evicted: Evicted) -> None:
    first = asyncio.ensure_future(evicted.refetch())
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await evicted.refetch()
    await first
    lists = evicted.b.served.count(GetList.__name__) + evicted.c.served.count(GetList.__name__)
    assert lists == 1


async def test_copies_that_are_to_be_moved_are_good_to_fetch_from(evicted: Evicted) -> None:
    a = evicted.a
    a.catalog.write(lambda db: copies.begin_move(db, evicted.b.node_id)).result()
    a.catalog.write(
        lambda db: copies.set_state(db, evicted.row.id, evicted.c.node_id, copies.CopyState.LOST)
    ).result()
    await evicted.refetch()
    assert Get.__name__ in evicted.b.served


async def test_a_row_that_went_meanwhile_leaves_no_file(evicted: Evicted) -> None:
    def forget(db: Any) -> None:
        db.execute("DELETE FROM file_bundles WHERE bundle=?", (evicted.row.id,))
        blocks.forget_unreferenced(db, evicted.row.id)

    listed = await evicted.refetcher.listed(evicted.row)
    evicted.refetcher.listed = _answer(listed)  # type: ignore[method-assign]
    evicted.a.catalog.write(forget).result()
    await evicted.refetch()
    assert not evicted.path.exists()


def _answer(listed: Any) -> Any:
    async def answer(_: Any) -> Any:
        return listed

    return answer

"""AUDIT: who keeps what it signed for counts, who does not counts no more; absence is no fault."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from p2pstore.content import BundleRef, Entry
from p2pstore.ids import NodeId
from p2pstore.maintenance.audit import Auditor
from p2pstore.maintenance.loops import Loop
from p2pstore.net import Request
from p2pstore.policy import SUSPECT_AFTER_S
from p2pstore.restore import Wanted
from p2pstore.store import BundleRow, BundleState, blocks, copies, holders
from p2pstore.wire import BlockReply, Challenge, Get, GetDone, Proof, Unknown, verify_get

from .nodes import DAY_MS, Device, Group

DAY_S = DAY_MS / 1000
Answer = Callable[[Request], Awaitable[None]]


def answers(device: Device, kind: type[Any], answer: Answer) -> None:
    """This device answers requests of one kind in its own way."""

    async def serve(request: Request) -> None:
        if isinstance(request.message, kind):
            await answer(request)
        else:
            await device.serve(request)

    device.transport.handler = serve


async def wrong_proof(request: Request) -> None:
    await request.reply(Proof(bytes(32)))


async def silence(request: Request) -> None:
    request.link.abort()


class Owner:
    """A device with two bundles at holders, and its auditor."""

    def __init__(self, owner: Device, *holders_: Device) -> None:
        self.owner = owner
        self.holders = holders_
        self.files = [owner.protect(name) for name in ("one", "two")]
        self.lied: list[NodeId] = []
        self.auditor = Auditor(
            catalog=owner.catalog,
            store=owner.bundles,
            pusher=owner.pusher,
            blocks_of=self._blocks_of,
            world=owner.look,
            connected=lambda: [h.node_id for h in self.holders],
            name_of=lambda node: node.hex(),
            lied=self.lied.append,
            clock=owner.clock,
            pool=owner.world.pool,
            random=lambda n: bytes(n),
        )

    async def _blocks_of(self, raw: bytes) -> list[Wanted]:
        """The manifests of these tests name a bundle."""
        for row in (self.files[0].data, self.files[1].data):
            if raw == row.bundle_id:
                index = self.index(row)
                return [Wanted(BundleRef(row.bundle_id, row.tag), b.block_id) for b in index]
        return []

    def index(self, row: BundleRow) -> list[Any]:
        return self._entries[row.id]

    def remember_blocks(self) -> None:
        """What manifests say, while the bundles are here to be read."""
        self._entries = {
            f.data.id: list(self.owner.bundles.index(f.data.bundle_id).blocks.entries)
            for f in self.files
        }
        for f in self.files:
            self.owner.catalog.write(
                lambda db, f=f: db.execute(
                    "INSERT OR REPLACE INTO manifests VALUES (?, ?)", (f.file, f.data.bundle_id)
                )
            ).result()

    async def turn(self) -> None:
        loop = Loop("audit", self.auditor.turn, catalog=self.owner.catalog, clock=self.owner.clock)
        await self.auditor.turn(loop)

    def copy(self, number: int, holder: Device) -> copies.Copy:
        return self.owner.copies(self.files[number].data)[holder.node_id]

    def record(self, holder: Device) -> holders.HolderRow:
        return self.owner.catalog.view(holders.every)[holder.node_id]

    def now_ms(self) -> int:
        return int(self.owner.clock.wall() * 1000)

    def advance(self, days: float) -> None:
        self.owner.clock.advance(days * DAY_S)


@pytest.fixture
async def owner(group: Group) -> Owner:
    a, b, c = await group.devices(3)
    made = Owner(a, b, c)
    await a.copy_to(b, c)
    made.remember_blocks()
    made.advance(2)
    return made


async def test_whole_proofs_make_copies_fresh(owner: Owner) -> None:
    await owner.turn()
    for holder in owner.holders:
        copy = owner.copy(0, holder)
        assert copy.proved_at == copy.audited_at == copy.tried_at == owner.now_ms()
        assert owner.record(holder).passed == 5, "two files of two bundles, and the index"


async def test_no_copy_is_asked_twice_a_day(owner: Owner) -> None:
    await owner.turn()
    owner.advance(0.5)
    await owner.turn()
    assert owner.record(owner.holders[0]).asked == 5


async def test_without_own_bytes_blocks_are_asked_for(owner: Owner) -> None:
    row = owner.files[0].data
    assert await owner.owner.evict(row) == {}
    before = owner.copy(0, owner.holders[0]).proved_at
    owner.advance(2)
    await owner.turn()
    copy = owner.copy(0, owner.holders[0])
    assert copy.audited_at == owner.now_ms()
    assert copy.proved_at == before, "a sample is no whole proof"


async def test_of_a_meta_bundle_the_manifests_that_lie_in_it_are_asked_for(owner: Owner) -> None:
    """After a recovery nothing of them is here, and contents name no block of theirs."""
    device, meta, holder = owner.owner, owner.files[0].meta, owner.holders[0]
    entry = device.bundles.index(meta.bundle_id).blocks.entries[0]
    place = BundleRef(meta.bundle_id, meta.tag), Entry(entry.block_id, 0, bytes(32), 0, 10)

    def change(db: sqlite3.Connection) -> None:
        db.execute("UPDATE files SET manifest_ref=?", (msgspec.msgpack.encode(place),))
        blocks.put_bundle(db, meta._replace(state=BundleState.EVICTED))
        copies.set_state(db, meta.id, holder.node_id, copies.CopyState.SUSPECT)

    device.catalog.write(change).result()
    assert await owner.auditor.confirm(holder.node_id) == 1
    assert device.copies(meta)[holder.node_id].state == copies.CopyState.PROVED


async def test_a_wrong_proof_uncounts_everything_of_that_holder(
    owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    liar, _ = owner.holders
    answers(liar, Challenge, wrong_proof)
    with caplog.at_level(logging.WARNING):
        await owner.turn()
    assert owner.lied == [liar.node_id]
    record = owner.record(liar)
    assert (record.lied_at, record.passed, record.asked) == (owner.now_ms(), 0, 1)
    assert "wrong proof" in caplog.text
    world = owner.owner.look()
    known = {
        node: holder._replace(lied_at=record.lied_at / 1000 if node == liar.node_id else None)
        for node, holder in world.holders.items()
    }
    counts = owner.owner.ledger.counts(dataclasses.replace(world, holders=known))
    assert set(counts.values()) == {1}, "the honest one's copies alone"


async def test_what_a_holder_says_it_has_not_is_lost_and_nothing_else(owner: Owner) -> None:
    holder = owner.holders[0]
    lost = owner.files[0].data.bundle_id

    async def forgets(request: Request) -> None:
        if request.message.bundle == lost:  # type: ignore[union-attr]
            raise Unknown("It is not here.")
        await holder.serve(request)

    answers(holder, Challenge, forgets)
    await owner.turn()
    assert owner.copy(0, holder).state == copies.CopyState.LOST
    assert owner.copy(1, holder).state == copies.CopyState.PROVED
    assert owner.lied == []
    assert owner.record(holder).failed_at == owner.now_ms()


async def test_silence_is_owed_since_the_first_time(owner: Owner) -> None:
    holder = owner.holders[0]
    answers(holder, Challenge, silence)
    await owner.turn()
    first = owner.now_ms()
    assert owner.copy(0, holder).owed_since == first
    assert owner.copy(0, holder).state == copies.CopyState.PROVED
    owner.advance(0.5)
    await owner.turn()
    assert owner.copy(0, holder).owed_since == first
    counts = owner.owner.ledger.counts(owner.owner.look())
    assert counts[owner.files[0].data.id] == 2, "it counts for a day"
    owner.advance(SUSPECT_AFTER_S / DAY_S - 0.5)
    counts = owner.owner.ledger.counts(owner.owner.look())
    assert counts[owner.files[0].data.id] == 1
    holder.transport.handler = holder.serve
    await owner.turn()
    assert owner.copy(0, holder).owed_since == 0
    counts = owner.owner.ledger.counts(owner.owner.look())
    assert counts[owner.files[0].data.id] == 2, "back, and counted again at once"


async def test_blocks_with_other_bytes_are_a_lie(owner: Owner) -> None:
    liar, row = owner.holders[0], owner.files[0].data
    assert await owner.owner.evict(row) == {}
    owner.advance(2)

    async def junk(request: Request) -> None:
        assert isinstance(request.message, Get)
        for block_id in verify_get(request.message.request).blocks:
            await request.reply(BlockReply(block_id), b"junk", final=False)
        await request.reply(GetDone())

    answers(liar, Get, junk)
    await owner.turn()
    assert owner.lied == [liar.node_id]


async def test_a_damaged_copy_of_ours_is_not_their_fault(owner: Owner) -> None:
    path = owner.owner.bundles.path(owner.files[0].data.bundle_id)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)
    await owner.turn()
    assert owner.lied == []
    assert {owner.copy(0, h).state for h in owner.holders} == {copies.CopyState.PROVED}
    assert {owner.copy(0, h).owed_since for h in owner.holders} == {0}


async def test_after_a_rebuild_a_holders_word_counts_when_it_is_proved(owner: Owner) -> None:
    holder, row = owner.holders[0], owner.files[0].data
    suspect = copies.CopyState.SUSPECT
    owner.owner.note_copy(row, holder, proved_at=0, state=suspect)
    assert await owner.auditor.confirm(holder.node_id) == 1
    assert owner.copy(0, holder).state == copies.CopyState.PROVED
    assert owner.copy(0, holder).proved_at == owner.now_ms()


async def test_nobody_is_judged_while_the_catalog_is_rebuilt(owner: Owner) -> None:
    owner.owner.facts = dataclasses.replace(owner.owner.facts, rebuilding=True)
    answers(owner.holders[0], Challenge, wrong_proof)
    await owner.turn()
    assert owner.lied == []

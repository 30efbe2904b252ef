"""REPAIR: a bundle that lies with others only keeps its copies when one of them is gone."""

from __future__ import annotations

import dataclasses

import pytest

from p2pstore.errors import NoRoom, Unavailable
from p2pstore.ids import NodeId
from p2pstore.maintenance import World
from p2pstore.maintenance import repair as module
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.repair import SOON_S, Repairer
from p2pstore.policy import Candidate, Holder
from p2pstore.store import BundleRow, BundleState, blocks, copies

from .nodes import Device, Filed, Group


class Repairing:
    """A device whose file is with two others; a fourth has room."""

    def __init__(self, group: Group, devices: list[Device], filed: Filed) -> None:
        self.a, self.b, self.c, self.d = devices
        self.filed = filed
        self.away: set[NodeId] = set()
        self.woken = 0
        self.free = 1 << 30
        a = self.a
        self.repairer = Repairer(
            catalog=a.catalog,
            ledger=a.ledger,
            refetcher=group.refetcher(a, free=lambda: self.free),
            world=self.world,
            connected=self.connected,
            copy_soon=self._wake,
            evict=lambda rows: a.evictor.evict(rows, lambda _: None),
            clock=a.clock,
            pool=group.pool,
        )

    def _wake(self) -> None:
        self.woken += 1
        self.a.replicator.look_anew()

    def connected(self) -> list[NodeId]:
        return [n.node_id for n in (self.b, self.c, self.d) if n.node_id not in self.away]

    def world(self) -> World:
        world = self.a.look()
        takers = [
            Candidate(Holder(node, "device"), offer=1, last_seen=world.now)
            for node in self.connected()
        ]
        away = world.now - 2 * 86_400
        known = {
            node: holder._replace(last_seen=away if node in self.away else world.now)
            for node, holder in world.holders.items()
        }
        return dataclasses.replace(world, takers=takers, holders=known, eligible=2)

    async def turn(self) -> float | None:
        loop = Loop("repair", self.repairer.turn, catalog=self.a.catalog, clock=self.a.clock)
        return await self.repairer.turn(loop)

    async def copy(self) -> None:
        """What the lanes of `replicate` do when they are woken."""
        self.a.replicator._world = self.world
        for node in (self.b, self.c, self.d):
            if node.node_id not in self.away:
                await self.a.replicator.serve(node.node_id)
        self.a.acknowledge(self.b, self.c, self.d)

    def row(self) -> BundleRow:
        return self.a.row(self.filed.data)


@pytest.fixture
async def repairing(group: Group) -> Repairing:
    devices = await group.devices(4)
    filed = devices[0].protect("one")
    await devices[0].copy_to(*devices[1:3])
    assert await devices[0].evict(filed.data) == {}
    return Repairing(group, devices, filed)


async def test_with_enough_copies_nothing_is_done(repairing: Repairing) -> None:
    assert await repairing.turn() is None
    assert repairing.row().state == BundleState.EVICTED
    assert repairing.woken == 0


async def test_a_holder_that_is_gone_is_replaced(repairing: Repairing) -> None:
    repairing.away = {repairing.c.node_id}
    assert await repairing.turn() == SOON_S
    assert repairing.row().state == BundleState.SEALED, "brought back from the one that has it"
    assert repairing.woken == 1
    await repairing.copy()
    assert repairing.d.held.has(repairing.filed.data.bundle_id)
    await repairing.turn()
    assert repairing.row().state == BundleState.EVICTED, "and freed again"
    assert await repairing.turn() is None


async def test_what_was_brought_back_stays_until_there_are_enough(repairing: Repairing) -> None:
    repairing.away = {repairing.c.node_id}
    await repairing.turn()
    assert await repairing.turn() == SOON_S
    assert repairing.row().state == BundleState.SEALED


async def test_a_copy_that_comes_back_needs_no_other(repairing: Repairing) -> None:
    repairing.away = {repairing.c.node_id}
    await repairing.turn()
    repairing.away = set()
    await repairing.turn()
    assert repairing.row().state == BundleState.EVICTED
    assert not repairing.d.held.has(repairing.filed.data.bundle_id)


async def test_when_nobody_has_it_there_is_nothing_to_try(repairing: Repairing) -> None:
    repairing.away = {repairing.b.node_id, repairing.c.node_id}
    assert await repairing.turn() is None
    assert repairing.row().state == BundleState.EVICTED


async def test_many_that_nobody_can_mend_hide_no_other(
    repairing: Repairing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with the fewest copies come first; the only holder of a thousand may be gone."""
    monkeypatch.setattr(module, "CHOICE", 1)
    a = repairing.a
    ghost = a.protect("ghost")
    gone = ghost.data._replace(state=BundleState.EVICTED)
    first = repairing.row().id
    a.catalog.write(lambda db: blocks.put_bundle(db, gone)).result()
    repairing.away = {repairing.c.node_id}
    assert await repairing.turn() == SOON_S
    assert repairing.row().state == BundleState.SEALED
    assert gone.id != first


async def test_what_a_lost_device_opened_is_repaired_too(repairing: Repairing) -> None:
    """After a recovery all files lie in bundles of the device that is gone."""
    row = repairing.row()
    repairing.a.catalog.write(lambda db: blocks.put_bundle(db, row._replace(own=0))).result()
    assert repairing.row().own == 0
    repairing.away = {repairing.c.node_id}
    assert await repairing.turn() == SOON_S
    assert repairing.row().state == BundleState.SEALED
    await repairing.copy()
    assert repairing.d.held.has(row.bundle_id)
    await repairing.turn()
    assert repairing.row().state == BundleState.EVICTED


async def test_with_nobody_to_take_it_what_has_too_few_copies_comes_back_to_stay(
    repairing: Repairing,
) -> None:
    repairing.away = {repairing.c.node_id, repairing.d.node_id}
    assert await repairing.turn() is None
    assert repairing.row().state == BundleState.SEALED
    await repairing.turn()
    assert repairing.row().state == BundleState.SEALED


async def test_with_min_copies_and_nobody_to_take_more_it_stays_away(repairing: Repairing) -> None:
    repairing.away = {repairing.d.node_id}
    assert await repairing.turn() is None
    assert repairing.row().state == BundleState.EVICTED


async def test_one_that_fails_rests_and_holds_up_no_other(
    repairing: Repairing, monkeypatch: pytest.MonkeyPatch
) -> None:
    repairing.away = {repairing.c.node_id}
    tried: list[int] = []

    async def fails(row: BundleRow) -> None:
        tried.append(row.id)
        raise Unavailable("a block is nowhere")

    monkeypatch.setattr(repairing.repairer._refetcher, "refetch", fails)
    assert await repairing.turn() is None
    await repairing.turn()
    assert tried == [repairing.row().id]
    repairing.a.clock.advance(61)
    await repairing.turn()
    assert len(tried) == 2


async def test_without_room_nothing_is_brought(repairing: Repairing) -> None:
    repairing.away, repairing.free = {repairing.c.node_id}, 10
    with pytest.raises(NoRoom):
        await repairing.repairer._refetcher.refetch(repairing.row())
    assert await repairing.turn() is None
    assert repairing.row().state == BundleState.EVICTED


async def test_a_holder_that_lost_it_is_given_it_again(repairing: Repairing) -> None:
    lost = repairing.filed.data
    repairing.c.held.release(lost.bundle_id)
    state = copies.CopyState.LOST
    repairing.a.catalog.write(
        lambda db: copies.set_state(db, lost.id, repairing.c.node_id, state)
    ).result()
    repairing.away = {repairing.d.node_id}
    assert await repairing.turn() == SOON_S
    await repairing.copy()
    assert repairing.c.held.has(lost.bundle_id)

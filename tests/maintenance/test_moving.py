"""MOVE: what a holder wants to be rid of goes elsewhere, and nothing is let go of before."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest

from p2pstore.errors import NoRoom, NotAllowed, Unavailable
from p2pstore.ids import BundleId, NodeId
from p2pstore.maintenance import Around, Mover, World
from p2pstore.maintenance.loops import Loop
from p2pstore.policy import merging
from p2pstore.store import BundleState, blocks, copies
from p2pstore.wire import Move
from tests.swarm.world import OTHER_GROUP_KEY

from .nodes import Device, Filed, Group

NO_LOOP = cast(Loop, type("NoLoop", (), {"say": lambda *_: None})())


class Owner:
    """A device with what answers MOVE; its lanes are run by `copy`."""

    def __init__(self, group: Group, device: Device) -> None:
        self.group, self.device = group, device
        self.others: list[Device] = [node for node in group.nodes if node is not device]
        self.soon = 0
        self.wire()

    def wire(self) -> None:
        a = self.device
        refetcher = self.group.refetcher(a, free=lambda: 1 << 30)
        self.mover = Mover(
            catalog=a.catalog,
            store=a.bundles,
            ledger=a.ledger,
            pusher=a.pusher,
            refetcher=refetcher,
            around=Around(
                world=self.world,
                links=a.connections.links,
                trouble=lambda: a.replicator.trouble,
                is_sending=lambda: any(a.replicator.sending.values()),
                copy_soon=self.copy_soon,
                evict=lambda rows: a.evictor.evict(rows, lambda _: None),
                name_of=lambda node: self.group.name_of(node) or "?",
            ),
            me=a.public,
            clock=a.clock,
            pool=self.group.pool,
        )
        a.server._moved = self.mover.asked

    def world(self) -> World:
        """What the evictor is told, too."""
        known = Device.look(self.device)
        holders = {
            node: holder
            for node, holder in known.holders.items()
            if node in {other.node_id for other in self.others} and node not in self.mover.leaving
        }
        return replace(known, holders=holders, eligible=len(holders))

    def copy_soon(self) -> None:
        self.soon += 1

    async def copy(self) -> None:
        """What the lanes do."""
        for other in self.others:
            if other.node_id not in self.mover.leaving:
                self.device.replicator.retry(other.node_id)
                await self.device.replicator.serve(other.node_id)

    async def turn(self) -> float | None:
        return await self.mover.turn(NO_LOOP)

    def states(self, holder: Device) -> set[str]:
        query = "SELECT DISTINCT state FROM copies WHERE holder=?"
        return {state for (state,) in self.device.catalog.read(query, (holder.node_id,))}


async def ask(holder: Any, owner: Any, why: Any, *bundles: BundleId) -> None:
    await holder.knows(owner)
    link = await holder.connections.connect(owner.node_id)
    await link.request(Move(bundles, why))


def held(device: Device) -> set[BundleId]:
    page, _ = device.held.list(next(iter(device.held.groups()), cast(Any, b"")), None, 1000)
    return {one.bundle_id for one in page}


async def made(group: Group, number: int) -> tuple[Owner, list[Device]]:
    a, *others = await group.devices(number)
    owner = Owner(group, a)
    a.look = owner.world  # type: ignore[method-assign]
    a.wire()
    owner.wire()
    return owner, others


async def test_what_a_leaving_holder_has_goes_to_another_and_then_from_it(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    owner.others = [b]
    filed = owner.device.protect("one")
    await owner.device.copy_to(b)
    all_of_it = held(b)
    owner.others = [b, c]
    await owner.device.meet(c)

    await ask(b, owner.device, "leaving")
    assert owner.states(b) == {"moving"}
    assert owner.soon
    assert await owner.turn() is not None
    assert held(b) == all_of_it, "nobody else has it yet"

    await owner.copy()
    await owner.turn()
    assert held(b) == set()
    assert held(c) == all_of_it
    assert owner.states(b) == {"released"}
    assert filed.data.bundle_id in b.held.trashed()
    assert await owner.turn() is None, "there is nothing more to do"


async def test_a_leaving_holder_gets_nothing_and_does_not_count(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    filed = a.protect("one")
    await a.copy_to(b, c)
    await ask(b, a, "leaving")
    (reasons,) = a.evictor.why([a.row(filed.data)])
    assert "needs 2 copies on other nodes, has 1" in reasons
    assert await a.evict(filed.data)
    assert a.is_here(filed.data)
    new = a.protect("two")
    await owner.copy()
    assert not b.held.has(new.data.bundle_id)
    assert c.held.has(new.data.bundle_id)


async def test_with_nobody_else_it_is_told_so_and_keeps_everything(group: Group) -> None:
    owner, (b,) = await made(group, 2)
    owner.device.protect("one")
    await owner.device.copy_to(b)
    before = held(b)
    with pytest.raises(NoRoom, match="no other device"):
        await ask(b, owner.device, "leaving")
    await owner.turn()
    with pytest.raises(NoRoom, match="no other device"):
        await ask(b, owner.device, "leaving")
    assert held(b) == before


async def test_who_stays_after_all_counts_again_when_it_has_proved(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    filed = a.protect("one")
    await a.copy_to(b, c)
    await ask(b, a, "leaving")
    await ask(b, a, "staying")
    assert owner.mover.leaving == frozenset()
    assert owner.states(b) == {"suspect"}
    await owner.copy()
    assert owner.states(b) == {"proved"}
    assert await a.evict(filed.data) == {}


async def test_a_bundle_that_is_not_here_is_brought_back_given_on_and_evicted_again(
    group: Group,
) -> None:
    owner, (b, c, d) = await made(group, 4)
    a = owner.device
    owner.others = [b, c]
    filed = a.protect("one")
    await a.copy_to(b, c)
    assert await a.evict(filed.data) == {}
    owner.others = [b, c, d]

    await ask(b, a, "leaving")
    await owner.turn()
    assert a.is_here(filed.data), "only from here others can have it"
    assert b.held.has(filed.data.bundle_id)
    await owner.copy()
    a.acknowledge(d)
    await owner.turn()
    assert held(b) == set()
    assert d.held.has(filed.data.bundle_id)
    assert c.held.has(filed.data.bundle_id)
    assert not a.is_here(filed.data), "its room is free again"


async def test_with_too_few_others_it_stays_here(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    filed = a.protect("one")
    await a.copy_to(b, c)
    assert await a.evict(filed.data) == {}
    await ask(b, a, "leaving")
    for _ in range(3):
        await owner.turn()
        await owner.copy()
    assert held(b) == set()
    assert c.held.has(filed.data.bundle_id)
    assert a.is_here(filed.data)
    assert a.row(filed.data).state == BundleState.SEALED


async def evicted_with_others(group: Group) -> tuple[Owner, Device, list[Device], Filed]:
    owner, (b, c, d) = await made(group, 4)
    filed = owner.device.protect("one")
    await owner.device.copy_to(b, c, d)
    assert await owner.device.evict(filed.data) == {}
    return owner, b, [c, d], filed


async def test_of_what_is_not_here_the_others_are_asked_for_blocks_first(group: Group) -> None:
    owner, b, (c, d), filed = await evicted_with_others(group)
    c.served.clear()
    await ask(b, owner.device, "leaving")
    await owner.turn()
    assert "Get" in c.served
    assert "Get" in d.served
    assert held(b) == set()
    assert not owner.device.is_here(filed.data), "nothing had to be brought back"


async def test_a_holder_that_lost_its_blocks_is_no_reason_to_let_go(group: Group) -> None:
    owner, b, (c, _), filed = await evicted_with_others(group)
    bundle_id = filed.data.bundle_id
    path = c.held._files.path(bundle_id)
    path.write_bytes(bytes(path.stat().st_size))
    await ask(b, owner.device, "leaving")
    await owner.turn()
    assert b.held.has(bundle_id)
    assert owner.device.is_here(filed.data), "brought back, for c to have it again"


async def test_a_damaged_copy_here_is_no_reason_to_let_go(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    filed = a.protect("one")
    await a.copy_to(b, c)
    path = a.bundles.path(filed.data.bundle_id)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    await ask(b, a, "leaving")
    await owner.turn()
    assert held(b) == {filed.data.bundle_id}, "one copy elsewhere, and none here, is too little"


async def test_it_goes_on_after_a_restart(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    owner.others = [b]
    owner.device.protect("one")
    await owner.device.copy_to(b)
    owner.others = [b, c]
    await ask(b, owner.device, "leaving")
    owner.wire()
    assert owner.mover.leaving == {b.node_id}
    await owner.copy()
    await owner.turn()
    assert held(b) == set()


async def test_what_the_catalog_does_not_know_is_moved_too(group: Group) -> None:
    owner, b, (c, d), filed = await evicted_with_others(group)
    a = owner.device

    def forget(db: Any) -> None:
        db.execute("DELETE FROM copies WHERE holder=?", (b.node_id,))
        db.execute("DELETE FROM copies WHERE bundle=?", (filed.data.id,))
        db.execute("DELETE FROM file_bundles WHERE bundle=?", (filed.data.id,))
        assert blocks.forget_unreferenced(db, filed.data.id) == filed.data.bundle_id

    a.catalog.write(forget).result()
    await ask(b, a, "leaving")
    for _ in range(4):
        await owner.turn()
        await owner.copy()
    assert held(b) == set()
    for other in (c, d):
        assert other.held.has(filed.data.bundle_id)


async def test_a_locked_copy_is_let_go_of_later(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    filed = a.protect("one")
    await a.copy_to(b, c)
    b.held.lock(filed.data.bundle_id, NodeId(b"x" * 20), seq=0)
    await ask(b, a, "leaving")
    assert await owner.turn() is not None
    assert held(b) == {filed.data.bundle_id}
    group.clock.advance(601)
    await owner.turn()
    assert held(b) == set()


async def test_for_room_only_what_was_named_goes(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    owner.others = [b]
    first, second = a.protect("one"), a.protect("two")
    await a.copy_to(b)
    owner.others = [b, c]
    await ask(b, a, "room", first.data.bundle_id)
    await owner.copy()
    await owner.turn()
    assert not b.held.has(first.data.bundle_id)
    assert c.held.has(first.data.bundle_id)
    assert b.held.has(second.data.bundle_id)
    assert owner.mover.leaving == frozenset()
    a.replicator.retry(b.node_id)
    assert copies.CopyState.MOVING not in owner.states(b)


async def test_what_is_to_go_for_room_is_not_given_back(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    filed = a.protect("one")
    await a.copy_to(b)
    await ask(b, a, "room", filed.data.bundle_id)
    assert filed.data.id not in {row.id for row in a.ledger.lacking(owner.world(), b.node_id, 99)}
    assert filed.data.id in {row.id for row in a.ledger.lacking(owner.world(), c.node_id, 99)}


async def test_nothing_moves_for_room_when_nobody_else_is_there(group: Group) -> None:
    owner, (b,) = await made(group, 2)
    filed = owner.device.protect("one")
    await owner.device.copy_to(b)
    with pytest.raises(NoRoom):
        await ask(b, owner.device, "room", filed.data.bundle_id)
    assert owner.states(b) == {"proved"}


async def test_a_full_holder_is_named(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    owner.others = [b]
    owner.device.protect("one")
    await owner.device.copy_to(b)
    owner.others = [b, c]
    c.refusal = "the offer is used up"
    await ask(b, owner.device, "leaving")
    await owner.copy()
    await owner.turn()
    with pytest.raises(Unavailable, match="the offer is used up"):
        await ask(b, owner.device, "leaving")
    c.refusal = None
    await owner.copy()
    await owner.turn()
    await ask(b, owner.device, "leaving")
    assert held(b) == set()


async def test_while_the_catalog_is_completed_nothing_is_let_go_of(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    a.protect("one")
    await a.copy_to(b, c)
    await ask(b, a, "leaving")
    a.facts = replace(a.facts, rebuilding=True)
    await owner.turn()
    assert held(b)
    a.facts = replace(a.facts, rebuilding=False)
    await owner.turn()
    assert not held(b)


async def test_strangers_ask_in_vain_and_friends_only_for_themselves(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    filed = a.protect("one")
    await a.copy_to(b, c)
    stranger = group.node("stranger", OTHER_GROUP_KEY)
    with pytest.raises(NotAllowed):
        await ask(stranger, a, "leaving")
    friend = group.node("friend", OTHER_GROUP_KEY)
    a.friends = frozenset((friend.group,))
    await ask(friend, a, "room", filed.data.bundle_id)
    assert owner.states(b) == owner.states(c) == {"proved"}


async def test_what_is_lost_while_others_are_served_is_not_let_go_of(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    first, second = a.protect("one"), a.protect("two")
    await a.copy_to(b, c)
    await ask(b, a, "leaving")
    real = owner.mover._release

    data = [first.data, second.data]

    def uncount(db: Any, number: int) -> None:
        copies.set_state(db, number, c.node_id, copies.CopyState.LOST)

    async def lose(holder: NodeId, row: Any) -> bool:
        """The other one's copy turns out to be gone, after the facts of both were read."""
        for other in data if row.id in {one.id for one in data} else ():
            if other.id != row.id:
                await a.catalog.awrite(partial(uncount, number=other.id))
        return await real(holder, row)

    monkeypatch.setattr(owner.mover, "_release", lose)
    await owner.turn()
    assert len(held(b) & {one.bundle_id for one in data}) == 1


async def test_an_absent_holder_costs_no_haste(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    a.protect("one")
    await a.copy_to(b, c)
    await ask(b, a, "leaving")
    links = a.connections.links
    owner.mover._around = replace(
        owner.mover._around,
        links=lambda: [link for link in links() if link.node_id != b.node_id],
    )
    assert await owner.turn() is None
    assert owner.mover.waiting == {}
    assert held(b)


async def test_a_friend_that_leaves_is_relieved_too(group: Group) -> None:
    owner, (b, c) = await made(group, 3)
    a = owner.device
    friend = group.node("anna", OTHER_GROUP_KEY)
    a.friends, friend.friends = frozenset((friend.group,)), frozenset((a.group,))
    owner.others = [b]
    a.protect("one")
    await a.copy_to(b)
    await a.knows(friend)
    for row in a.ledger.lacking(owner.world(), friend.node_id, 99):
        await a.pusher.push(row.bundle_id, row.tag, friend.node_id)
        a.note_copy(row, friend)
    all_of_it = held(cast(Device, friend))
    assert all_of_it
    owner.others = [b, c]
    await ask(friend, a, "leaving")
    await owner.copy()
    await owner.turn()
    assert held(cast(Device, friend)) == set()
    assert held(c) >= all_of_it
    assert {state for (state,) in a.catalog.read("SELECT DISTINCT state FROM copies")} == {
        "proved",
        "released",
    }


async def test_what_was_merged_is_let_go_of_by_a_leaver_at_once(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old bundles lie in the trash here for a week: a holder that leaves need not wait for that,
    and nobody brings them back to copy them elsewhere."""
    monkeypatch.setattr(merging, "FEWEST", 3)
    owner, (b, c) = await made(group, 3)
    a = owner.device
    olds = [a.protect(f"file {i}") for i in range(3)]
    await a.copy_to(b, c)
    group.clock.advance(1.1 * 86_400)
    await a.merge()
    await a.copy_to(b, c)
    await a.merge()
    assert a.row(olds[0].data).state == BundleState.DEAD

    await ask(b, a, "leaving")
    owner.others = [c]
    await owner.turn()
    assert olds[0].data.bundle_id not in held(b)
    assert olds[0].data.bundle_id in held(c)
    assert a.bundles.trash(), "here they stay for their time"
    while await owner.turn() is not None:
        pass
    assert held(b) == set()


async def test_a_leaver_keeps_what_was_merged_while_the_new_one_is_not_safe(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FEWEST", 3)
    owner, (b, c) = await made(group, 3)
    a = owner.device
    olds = [a.protect(f"file {i}") for i in range(3)]
    await a.copy_to(b, c)
    group.clock.advance(1.1 * 86_400)
    await a.merge()
    await a.copy_to(b, c)
    await a.merge()
    (data, _) = (
        row
        for row in a.catalog.view(blocks.list_bundles)
        if a.is_here(row) and a.bundles.index(row.bundle_id).blocks.replaces
    )
    a.catalog.write(
        lambda db: copies.set_state(db, data.id, c.node_id, copies.CopyState.LOST)
    ).result()
    await ask(b, a, "leaving")
    await owner.turn()
    assert olds[0].data.bundle_id in held(b)

"""MOVE from the holder's side: owners hear how it stands, and nothing is dropped here."""

from __future__ import annotations

import pytest

from p2pstore.errors import NoRoom, P2PStoreError, Unavailable
from p2pstore.ids import BundleId, NodeId
from p2pstore.maintenance import HandingOver, Relief
from p2pstore.store import HeldStore
from p2pstore.wire import Move

from .nodes import Device, Group
from .test_moving import NO_LOOP, held


class Holder:
    """A device that keeps bundles of others, who note what they are asked."""

    def __init__(self, group: Group, device: Device) -> None:
        self.group, self.device = group, device
        self.heard: list[tuple[str, str, int]] = []  # owner, why, bundles
        self.answer: dict[NodeId, P2PStoreError] = {}
        self.free = 1000
        self.wire()

    def wire(self) -> None:
        device = self.device
        self.handing = HandingOver(
            device.path.with_name("leaving"),
            device.held,
            device.connections.links,
            me=device.node_id,
            pool=self.group.pool,
        )
        self.relief = Relief(
            device.held,
            self.handing,
            free=lambda: self.free,
            me=device.node_id,
            pool=self.group.pool,
        )
        self.handing.then(self.relief.asks_anew)

    async def owned_by(self, owner: Device, *names: str) -> list[BundleId]:
        """Bundles of that owner, which is linked and listens to MOVE."""
        rows = [owner.bundle(f"{owner.name}/{name}") for name in names]
        for row in rows:
            await owner.pusher.push(row.bundle_id, row.tag, self.device.node_id)

        async def note(holder: NodeId, message: Move) -> None:
            assert holder == self.device.node_id
            self.heard.append((owner.name, message.why, len(message.bundles)))
            if owner.node_id in self.answer:
                raise self.answer[owner.node_id]

        owner.server._moved = note
        return [row.bundle_id for row in rows]


async def made(group: Group) -> tuple[Holder, Device, Device]:
    b, a, c = await group.devices(3)
    return Holder(group, b), a, c


async def test_every_owner_is_asked_and_nothing_is_dropped(group: Group) -> None:
    holder, a, c = await made(group)
    bundles = [*await holder.owned_by(a, "one", "two"), *await holder.owned_by(c, "three")]
    await holder.handing.leave()
    assert await holder.handing.tell() == {a.node_id: None, c.node_id: None}
    assert sorted(holder.heard) == [(a.name, "leaving", 0), (c.name, "leaving", 0)]
    assert held(holder.device) == set(bundles)
    kept = holder.handing.kept()
    assert {owner: one.bundles for owner, one in kept.items()} == {a.node_id: 2, c.node_id: 1}


async def test_an_owner_that_cannot_or_is_away_says_why(group: Group) -> None:
    holder, a, c = await made(group)
    await holder.owned_by(a, "one")
    await holder.owned_by(c, "two")
    holder.answer[a.node_id] = NoRoom("There is nobody else.")
    links = holder.device.connections.links
    holder.handing._links = lambda: [link for link in links() if link.node_id == a.node_id]
    await holder.handing.leave()
    said = await holder.handing.tell()
    assert isinstance(said[a.node_id], NoRoom)
    assert str(said[a.node_id]) == "There is nobody else."
    assert str(said[c.node_id]) == "It cannot be reached now."


async def test_who_leaves_takes_nothing_new_and_goes_on_after_a_restart(group: Group) -> None:
    holder, a, _ = await made(group)
    await holder.owned_by(a, "one")
    assert holder.handing.refusal() is None
    await holder.handing.leave()
    holder.wire()
    assert holder.handing.is_leaving
    assert holder.handing.refusal() == "this node is leaving"
    holder.handing.linked(a.node_id)
    assert await holder.handing.turn(NO_LOOP) is None
    assert holder.heard == [(a.name, "leaving", 0)]
    await holder.handing.stay()
    holder.wire()
    assert not holder.handing.is_leaving


async def test_who_stays_after_all_says_so_at_once_and_at_every_link(group: Group) -> None:
    holder, a, _ = await made(group)
    await holder.owned_by(a, "one")
    await holder.handing.leave()
    await holder.handing.stay()
    await holder.handing.turn(NO_LOOP)
    assert holder.heard == [(a.name, "staying", 0)]
    await holder.handing.turn(NO_LOOP)
    assert len(holder.heard) == 1
    holder.handing.linked(a.node_id)
    await holder.handing.turn(NO_LOOP)
    assert len(holder.heard) == 2


async def test_who_gave_nothing_is_told_nothing(group: Group) -> None:
    holder, a, c = await made(group)
    await holder.owned_by(a, "one")
    c.server._moved = a.server._moved
    await c.meet(holder.device)
    holder.handing.linked(c.node_id)
    await holder.handing.turn(NO_LOOP)
    assert holder.heard == []


async def test_an_owner_that_fails_is_told_again(group: Group) -> None:
    holder, a, _ = await made(group)
    await holder.owned_by(a, "one")
    holder.answer[a.node_id] = P2PStoreError("out of order")
    holder.handing.linked(a.node_id)
    assert await holder.handing.turn(NO_LOOP) is not None
    holder.answer.clear()
    assert await holder.handing.turn(NO_LOOP) is None
    assert [why for _, why, _ in holder.heard] == ["staying", "staying"]


# Room


def size_of(store: HeldStore, *bundles: BundleId) -> int:
    return sum(store.side(bundle).live_bytes for bundle in bundles)


async def test_the_oldest_leases_are_to_go_and_no_more_than_needed(group: Group) -> None:
    holder, a, c = await made(group)
    store = holder.device.held
    one, two = await holder.owned_by(a, "one", "two")
    (three,) = await holder.owned_by(c, "three")
    order = store.renew([one, three], 10**15, store.group_of(one))
    assert order == [0, 0]
    holder.free = -1
    assert await holder.relief.turn(NO_LOOP) is not None
    assert holder.heard == [(a.name, "room", 1)]
    await holder.relief.turn(NO_LOOP)
    assert len(holder.heard) == 1, "it is under way"
    holder.free = -size_of(store, two) - 1
    await holder.relief.turn(NO_LOOP)
    assert len(holder.heard) == 2
    assert held(holder.device) == {one, two, three}, "nothing is dropped here"


async def test_what_was_let_go_of_for_room_goes_at_once(group: Group) -> None:
    holder, a, _ = await made(group)
    store = holder.device.held
    one, two = await holder.owned_by(a, "one", "two")
    store.release(two)
    store.renew([one], 10**15, store.group_of(one))
    holder.free = -1
    await holder.relief.turn(NO_LOOP)
    assert set(store.trashed()) == {two}, "nobody asked for that one to be moved"
    await a.pusher.release(one, holder.device.node_id)
    await holder.relief.turn(NO_LOOP)
    assert set(store.trashed()) == {two}


async def test_while_there_is_room_nothing_is_purged_or_asked(group: Group) -> None:
    holder, a, _ = await made(group)
    one, _ = await holder.owned_by(a, "one", "two")
    holder.free = -1
    await holder.relief.turn(NO_LOOP)
    await a.pusher.release(one, holder.device.node_id)
    holder.free = 0
    assert await holder.relief.turn(NO_LOOP) is None
    assert set(holder.device.held.trashed()) <= {one}
    assert holder.heard[-1] == (a.name, "staying", 0)
    assert await holder.relief.turn(NO_LOOP) is None
    assert [why for _, why, _ in holder.heard] == ["room", "staying"]


async def test_an_owner_without_another_place_is_passed_over(group: Group) -> None:
    holder, a, c = await made(group)
    store = holder.device.held
    (one,) = await holder.owned_by(a, "one")
    (two,) = await holder.owned_by(c, "two")
    store.renew([two], 10**15, store.group_of(two))
    holder.answer[a.node_id] = NoRoom("nobody")
    holder.free = -1
    await holder.relief.turn(NO_LOOP)
    assert holder.heard == [(a.name, "room", 1), (c.name, "room", 1)]
    assert store.has(one)


async def test_who_leaves_asks_for_no_room(group: Group) -> None:
    holder, a, _ = await made(group)
    await holder.owned_by(a, "one")
    await holder.handing.leave()
    holder.free = -1
    assert await holder.relief.turn(NO_LOOP) is None
    assert holder.heard == []


async def test_after_a_new_link_room_is_asked_for_again(group: Group) -> None:
    holder, a, _ = await made(group)
    await holder.owned_by(a, "one")
    holder.free = -1
    await holder.relief.turn(NO_LOOP)
    holder.handing.linked(a.node_id)
    with pytest.raises(Unavailable):
        await holder.handing.ask(a.node_id, "room")  # it would be taken back by "staying"
    await holder.handing.turn(NO_LOOP)
    await holder.relief.turn(NO_LOOP)
    assert [why for _, why, _ in holder.heard] == ["room", "staying", "room"]


@pytest.mark.parametrize("missing", [0, 1])
async def test_exactly_keep_free_is_enough(group: Group, missing: int) -> None:
    holder, a, _ = await made(group)
    await holder.owned_by(a, "one")
    holder.free = -missing
    await holder.relief.turn(NO_LOOP)
    assert len(holder.heard) == missing

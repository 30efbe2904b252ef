"""RENEW: no lease of ours ends while its holder can be asked."""

from __future__ import annotations

import pytest

from p2pstore.ids import NodeId
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.renew import AGAIN_S, Renewer
from p2pstore.store import copies

from .nodes import DAY_MS, Device, Filed, Group

DAY_S = DAY_MS / 1000


class Owner:
    def __init__(self, owner: Device, holder: Device, filed: Filed) -> None:
        self.owner, self.holder, self.filed = owner, holder, filed
        self.connected: list[NodeId] = [holder.node_id]
        self.renewer = Renewer(
            catalog=owner.catalog,
            pusher=owner.pusher,
            connected=lambda: self.connected,
            name_of=lambda node: node.hex(),
            clock=owner.clock,
            pool=owner.world.pool,
        )

    async def turn(self) -> float | None:
        loop = Loop("renew", self.renewer.turn, catalog=self.owner.catalog, clock=self.owner.clock)
        return await self.renewer.turn(loop)

    def left_days(self) -> float:
        copy = self.owner.copies(self.filed.data)[self.holder.node_id]
        return (copy.lease_until / 1000 - self.owner.clock.wall()) / DAY_S

    async def promised_days(self) -> float:
        async for holding in self.owner.pusher.holdings(self.holder.node_id):
            if holding.bundle == self.filed.data.bundle_id:
                return (holding.lease_until_ms / 1000 - self.owner.clock.wall()) / DAY_S
        raise AssertionError("not held")


@pytest.fixture
async def owner(group: Group) -> Owner:
    a, b = await group.devices(2)
    filed = a.protect("one")
    await a.copy_to(b)
    return Owner(a, b, filed)


async def test_a_young_lease_is_left_alone(owner: Owner) -> None:
    owner.owner.clock.advance(29 * DAY_S)
    assert await owner.turn() is None
    assert owner.left_days() == 151


async def test_an_older_one_is_renewed_at_the_holder_and_here(owner: Owner) -> None:
    owner.owner.clock.advance(31 * DAY_S)
    assert await owner.turn() is None
    assert owner.left_days() == await owner.promised_days() == 180


async def test_who_is_away_is_asked_when_it_is_back(owner: Owner) -> None:
    owner.owner.clock.advance(31 * DAY_S)
    owner.connected = []
    assert await owner.turn() == AGAIN_S
    assert owner.left_days() == 149
    owner.connected = [owner.holder.node_id]
    assert await owner.turn() is None
    assert owner.left_days() == 180


async def test_what_the_holder_has_not_is_lost(owner: Owner) -> None:
    owner.owner.clock.advance(31 * DAY_S)
    owner.holder.held.release(owner.filed.data.bundle_id)
    await owner.turn()
    lost = owner.owner.copies(owner.filed.data)[owner.holder.node_id]
    assert lost.state == copies.CopyState.LOST
    other = owner.owner.copies(owner.filed.meta)[owner.holder.node_id]
    assert other.state == copies.CopyState.PROVED


async def test_a_lease_from_a_clock_gone_wrong_is_put_right(owner: Owner) -> None:
    owner.owner.clock.jump(10 * 365 * DAY_S)
    await owner.turn()
    owner.owner.clock.jump(-10 * 365 * DAY_S)
    assert owner.left_days() > 3000
    await owner.turn()
    assert owner.left_days() == 180

"""What is kept for somebody who let the lease end: when it goes, and when it does not."""

from __future__ import annotations

from p2pstore.ids import BundleId
from p2pstore.maintenance import Lapser

from .nodes import DAY_MS, Device, Group
from .test_moving import NO_LOOP, held

DAY_S = DAY_MS / 1000


class Holder:
    def __init__(self, group: Group, device: Device, owner: Device) -> None:
        self.device, self.owner = device, owner
        self.group = group
        self.free = -1
        self.start()

    def start(self) -> None:
        self.lapser = Lapser(
            self.device.held,
            self.device.catalog,
            free=lambda: self.free,
            clock=self.device.clock,
            pool=self.group.pool,
        )

    async def keeps(self, name: str, *, lease_s: int = 86_400) -> BundleId:
        row = self.owner.bundle(name)
        await self.owner.pusher.push(row.bundle_id, row.tag, self.device.node_id, lease_s=lease_s)
        return row.bundle_id

    async def days(self, number: int) -> None:
        """Days go by, with a look at each of them."""
        for _ in range(number):
            self.group.clock.advance(DAY_S)
            await self.lapser.turn(NO_LOOP)


async def made(group: Group) -> Holder:
    owner, device = await group.devices(2)
    return Holder(group, device, owner)


async def test_it_goes_thirty_days_after_the_end_when_the_disk_is_full(group: Group) -> None:
    holder = await made(group)
    bundle = await holder.keeps("one")
    await holder.days(31)
    assert held(holder.device) == {bundle}
    await holder.days(1)
    assert held(holder.device) == set()
    assert bundle in holder.device.held.trashed(), "its owner can have it back for a week"


async def test_it_stays_while_there_is_room(group: Group) -> None:
    holder = await made(group)
    holder.free = 0
    bundle = await holder.keeps("one")
    await holder.days(400)
    assert held(holder.device) == {bundle}


async def test_a_clock_that_jumps_ten_years_lets_nothing_go(group: Group) -> None:
    holder = await made(group)
    bundle = await holder.keeps("one", lease_s=180 * 86_400)
    group.clock.jump(10 * 365 * DAY_S)
    await holder.lapser.turn(NO_LOOP)
    holder.start()  # a restart counts for a week at the most
    group.clock.jump(10 * 365 * DAY_S)
    await holder.lapser.turn(NO_LOOP)
    assert held(holder.device) == {bundle}
    group.clock.jump(-20 * 365 * DAY_S)
    await holder.days(40)
    assert held(holder.device) == {bundle}, "the lease has not ended"


async def test_a_lease_that_was_renewed_begins_anew(group: Group) -> None:
    holder = await made(group)
    bundle = await holder.keeps("one")
    await holder.days(30)
    await holder.owner.pusher.renew(holder.device.node_id, [bundle], lease_s=2 * 86_400)
    await holder.days(31)
    assert held(holder.device) == {bundle}
    await holder.days(2)
    assert held(holder.device) == set()


async def test_what_somebody_has_locked_stays(group: Group) -> None:
    holder = await made(group)
    bundle = await holder.keeps("one")
    await holder.days(31)
    await holder.owner.pusher.lock(bundle, holder.device.node_id, seq=0)
    await holder.days(1)
    assert held(holder.device) == {bundle}

"""Copies beyond what is enough: which go, when, and that enough stay."""

from __future__ import annotations

from p2pstore.maintenance import Ledger, Surplus
from p2pstore.store import BundleRow, copies

from .nodes import DAY_MS, Device, Group
from .test_moving import NO_LOOP

DAY_S = DAY_MS / 1000
TARGET, TOLERATED = 4, 2


class Owner:
    def __init__(self, group: Group, device: Device) -> None:
        self.group, self.device = group, device
        self.away: set[Device] = set()
        self.surplus = Surplus(
            catalog=device.catalog,
            ledger=Ledger(device.catalog),
            pusher=device.pusher,
            world=device.look,
            connected=lambda: [n.node_id for n in group.nodes if n not in self.away],
            clock=device.clock,
            pool=group.pool,
        )

    async def days(self, number: int, *, jump: bool = False) -> None:
        for _ in range(number):
            (self.group.clock.jump if jump else self.group.clock.advance)(DAY_S)
            await self.surplus.turn(NO_LOOP)

    def proved(self, row: BundleRow) -> int:
        found = self.device.copies(row).values()
        return sum(copy.state == copies.CopyState.PROVED for copy in found)


async def crowded(group: Group, holders: int) -> tuple[Owner, BundleRow]:
    owner, *others = await group.devices(1 + holders)
    row = owner.bundle("one")
    for number, other in enumerate(others):
        receipt = await owner.pusher.push(row.bundle_id, row.tag, other.node_id)
        owner.note_copy(row, other, receipt=receipt.raw, since=number + 1)
    return Owner(group, owner), row


async def test_what_is_far_beyond_the_target_goes_after_two_weeks(group: Group) -> None:
    owner, row = await crowded(group, TARGET + TOLERATED + 2)
    await owner.days(14)
    assert owner.proved(row) == TARGET + TOLERATED + 2
    await owner.days(1)
    assert owner.proved(row) == TARGET + TOLERATED + 1
    await owner.days(5)
    assert owner.proved(row) == TARGET + TOLERATED
    newest = group.nodes[-2:]
    assert all(row.bundle_id in node.held.trashed() for node in newest)


async def test_a_little_more_than_enough_is_left_alone(group: Group) -> None:
    owner, row = await crowded(group, TARGET + TOLERATED)
    await owner.days(60)
    assert owner.proved(row) == TARGET + TOLERATED


async def test_who_is_away_is_not_asked(group: Group) -> None:
    owner, row = await crowded(group, TARGET + TOLERATED + 1)
    owner.away = set(group.nodes[1:])
    await owner.days(20)
    assert owner.proved(row) == TARGET + TOLERATED + 1


async def test_a_clock_that_jumps_makes_no_two_weeks(group: Group) -> None:
    owner, row = await crowded(group, TARGET + TOLERATED + 1)
    await owner.surplus.turn(NO_LOOP)
    await owner.days(13, jump=True)
    assert owner.proved(row) == TARGET + TOLERATED + 1


async def test_the_two_weeks_begin_anew_when_a_copy_was_needed_meanwhile(group: Group) -> None:
    owner, row = await crowded(group, TARGET + TOLERATED + 1)
    await owner.days(10)
    last = group.nodes[-1]
    state = copies.CopyState
    owner.device.catalog.write(
        lambda db: copies.set_state(db, row.id, last.node_id, state.LOST)
    ).result()
    await owner.days(1)
    owner.device.catalog.write(
        lambda db: copies.set_state(db, row.id, last.node_id, state.PROVED)
    ).result()
    await owner.days(10)
    assert owner.proved(row) == TARGET + TOLERATED + 1

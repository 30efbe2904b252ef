"""ROOM: when the disk fills up the longest unused goes, and what may not go stops no other."""

from __future__ import annotations

from p2pstore.maintenance import RoomMaker
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.room import REST_S, SOON_S, STAYS_S
from p2pstore.store import BundleRow, BundleState, State, files

from .nodes import DAY_MS, Device, Group

TOTAL = 20  # so that each turn wants two bytes: one bundle is enough


class Full:
    """A device with a disk that is as full as the test says."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.older: BundleRow
        self.younger: BundleRow
        self.free = 0
        self.maker = RoomMaker(
            catalog=device.catalog,
            evictor=device.evictor,
            measures=lambda: (TOTAL, self.free, 0),
            waiting=lambda: 0,
            clock=device.clock,
            pool=device.world.pool,
        )

    async def turn(self) -> float | None:
        loop = Loop("room", self.maker.turn, catalog=self.device.catalog, clock=self.device.clock)
        return await self.maker.turn(loop)

    def is_here(self, row: BundleRow) -> bool:
        return self.device.row(row).state == BundleState.SEALED


async def full(group: Group, *, older: str = State.PLACEHOLDER) -> Full:
    """Two bundles that were written two days apart, each with two holders."""
    a, b, c = await group.devices(3)
    made = Full(a)
    made.older = a.protect("older", state=older).data
    a.clock.advance(2 * DAY_MS / 1000)
    made.younger = a.protect("younger").data
    a.clock.advance(2 * DAY_MS / 1000)
    await a.copy_to(b, c)
    return made


async def test_while_there_is_room_nothing_goes(group: Group) -> None:
    made = await full(group)
    made.free = TOTAL
    assert await made.turn() is None
    assert made.is_here(made.older)


async def test_the_longest_unused_goes_and_no_more_than_is_wanted(group: Group) -> None:
    made = await full(group)
    assert await made.turn() is None
    assert (made.is_here(made.older), made.is_here(made.younger)) == (False, True)


async def test_what_may_not_go_stops_no_other(group: Group) -> None:
    made = await full(group, older=State.HYDRATING)
    assert await made.turn() == SOON_S
    assert await made.turn() is None
    assert (made.is_here(made.older), made.is_here(made.younger)) == (True, False)
    assert await made.turn() == REST_S, "nothing is left to be tried"


async def test_what_could_not_go_is_tried_again_after_an_hour(group: Group) -> None:
    made = await full(group, older=State.HYDRATING)
    await made.turn()
    await made.turn()
    device = made.device
    row = device.catalog.view(lambda db: files.get(db, device.folder, b"older"))
    assert row is not None
    identity = (row.id, State.PLACEHOLDER, 1, 1, 1, 1)
    device.catalog.write(lambda db: files.set_on_disk(db, [identity])).result()
    assert await made.turn() == REST_S
    device.clock.advance(STAYS_S + 1)
    await made.turn()
    assert not made.is_here(made.older)

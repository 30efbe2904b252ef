"""SCRUB: everything is read once in its period, slowly, and goes on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from p2pstore.content import sign_live_map
from p2pstore.maintenance import Loop, Scrubber
from p2pstore.maintenance import scrub as module
from p2pstore.store import BundleRow, BundleState, blocks

from .nodes import Device, Group
from .test_heal import Sick, flip_in, removed

MONTH = 30 * 86_400.0


class Scrubbing:
    def __init__(self, sick: Sick) -> None:
        self.sick, self.a = sick, sick.a
        self.slept: list[float] = []
        self.read: list[bytes] = []
        self.stop_after = 1 << 30
        self.begin()

    def begin(self) -> None:
        """As a new process would."""
        a = self.a
        self.scrubber = Scrubber(
            catalog=a.catalog,
            store=a.bundles,
            held=a.held,
            healer=self.sick.healer,
            clock=a.clock,
            dedup_secret=lambda: bytes(32),
            period_s=MONTH,
            sleep=self.sleep,
        )
        self.loop = Loop(
            "scrub",
            self.scrubber.turn,
            catalog=a.catalog,
            clock=a.clock,
            period_s=MONTH,
            lasts=True,
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self.stop_after:
            raise asyncio.CancelledError

    async def turn(self) -> None:
        self.loop._kept = self.a.catalog.view(self.loop._load)
        try:
            await self.scrubber.turn(self.loop)
        finally:
            self.scrubber.close()

    def damaged(self) -> list[bytes]:
        return list(self.sick.healer.damaged())


@pytest.fixture
async def sick(group: Group) -> Sick:
    a, b, c = await group.devices(3)
    rows = [a.protect(name).data for name in ("one", "two", "three")]
    await a.copy_to(b, c)
    for row in rows:
        a.holders[row.bundle_id] = [b.node_id, c.node_id]
    await b.replicator.serve(a.node_id)
    return Sick(group, a, [b, c], a.row(rows[1]))


@pytest.fixture
async def scrubbing(sick: Sick) -> AsyncIterator[Scrubbing]:
    made = Scrubbing(sick)
    yield made
    made.scrubber.close()


async def test_a_sound_disk_is_read_to_its_end(scrubbing: Scrubbing) -> None:
    await scrubbing.turn()
    a = scrubbing.a
    held = [held for held in a.held.oldest()]
    assert held
    assert len(scrubbing.slept) == len(a.bundles.list()) + len(held)
    assert scrubbing.damaged() == []
    assert scrubbing.loop.place == b""


async def test_no_faster_than_it_may(scrubbing: Scrubbing) -> None:
    await scrubbing.turn()
    size = sum(
        row.length
        for bundle_id in scrubbing.a.bundles.list()
        for row in scrubbing.a.bundles.index(bundle_id).blocks.entries
    )
    assert sum(scrubbing.slept) >= size / module.RATE_BYTES


async def test_a_large_store_is_read_twice_as_fast_as_it_must(
    scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RATE_BYTES", 0)
    await scrubbing.turn()
    assert 0 < sum(scrubbing.slept) <= MONTH / 2 + 1


@pytest.mark.parametrize("damage", [flip_in(3), removed])
async def test_what_is_damaged_is_healed(scrubbing: Scrubbing, damage: object) -> None:
    sick = scrubbing.sick
    damage(sick)  # type: ignore[operator]
    await scrubbing.turn()
    assert scrubbing.damaged() == [sick.row.bundle_id]
    await sick.healer.turn(scrubbing.loop)
    assert sick.path.read_bytes() == sick.was
    assert scrubbing.damaged() == []


async def test_what_nobody_can_heal_now_stays_noted(scrubbing: Scrubbing) -> None:
    sick = scrubbing.sick
    flip_in(3)(sick)
    sick.cut_off(*sick.holders)
    await scrubbing.turn()
    await sick.healer.turn(scrubbing.loop)
    assert scrubbing.damaged() == [sick.row.bundle_id]
    sick.group.network.unreachable.clear()
    await sick.healer.turn(scrubbing.loop)
    assert scrubbing.damaged() == []


async def test_noted_damage_of_a_bundle_that_went_is_struck(scrubbing: Scrubbing) -> None:
    await scrubbing.sick.healer.note(b"x" * 32)  # type: ignore[arg-type]
    await scrubbing.sick.healer.turn(scrubbing.loop)
    assert scrubbing.damaged() == []


async def test_an_evicted_bundle_is_not_missing(scrubbing: Scrubbing) -> None:
    assert await scrubbing.a.evict(scrubbing.sick.row) == {}
    await scrubbing.turn()
    assert scrubbing.damaged() == []


async def test_damage_of_what_is_kept_for_others_is_noted_there(scrubbing: Scrubbing) -> None:
    a = scrubbing.a
    held = a.held.oldest()[0]
    path = a.held._files.path(held.bundle_id)  # type: ignore[attr-defined]
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)
    await scrubbing.turn()
    assert a.held._table.entry(held.bundle_id).is_damaged
    assert scrubbing.damaged() == [], "its owner's to heal"


async def test_a_row_that_is_behind_its_live_map_follows(scrubbing: Scrubbing) -> None:
    """As when the catalog was brought back from an older copy."""
    a, row = scrubbing.a, scrubbing.sick.row
    live = a.bundles.live_map(row.bundle_id).without({0})
    assert a.bundles.set_live_map(row.bundle_id, sign_live_map(live, a.key))
    await scrubbing.turn()
    assert a.row(row).seq == 1
    assert a.row(row).bytes < row.bytes


async def test_it_goes_on_where_it_was(
    scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP_EVERY", 1)
    a = scrubbing.a
    total = len(a.bundles.list()) + len(a.held.oldest())
    for stop in range(1, total):
        scrubbing.slept.clear()
        scrubbing.stop_after = 1
        with pytest.raises(asyncio.CancelledError):
            await scrubbing.turn()
        assert scrubbing.loop.place, stop
        scrubbing.begin()
    scrubbing.slept.clear()
    scrubbing.stop_after = 1 << 30
    await scrubbing.turn()
    assert len(scrubbing.slept) == 1, "only the last was left"
    assert scrubbing.loop.place == b""


async def test_a_bundle_that_came_during_the_turn_is_read_too(scrubbing: Scrubbing) -> None:
    a: Device = scrubbing.a
    late: list[BundleRow] = []
    real = scrubbing.sleep

    async def sleeping(seconds: float) -> None:
        if not late:
            late.append(a.bundle("late"))
        await real(seconds)

    scrubbing.scrubber._sleep = sleeping
    before = len(a.bundles.list()) + len(a.held.oldest())
    await scrubbing.turn()
    assert len(scrubbing.slept) == before + 1
    assert a.catalog.view(lambda db: blocks.by_rowid(db, late[0].id)).state == BundleState.SEALED  # type: ignore[union-attr]

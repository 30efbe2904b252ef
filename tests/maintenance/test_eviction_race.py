"""Several devices that hold the same bundle and all want to be rid of it at the same time.

Each has the bundle in its own store and counts the others. Whatever is cut, at least `min_copies`
whole copies stay: whoever unlinks must have been told by enough others that they stay.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import shutil
from typing import Any

import pytest

from p2pstore.config import FolderSettings
from p2pstore.content import Kind
from p2pstore.ids import BundleId
from p2pstore.store import BundleRow, BundleState, blocks

from .nodes import Device, Group


async def sharing(group: Group, number: int, *, bundles: int = 1, low: int = 2) -> list[BundleRow]:
    """`number` devices with the same bundles in their own stores; each counts all others."""
    devices: list[Device] = await group.devices(number)
    first = devices[0]
    made = [
        (first.bundle(f"data {i}"), first.bundle(f"meta {i}", Kind.META)) for i in range(bundles)
    ]
    rows: list[BundleRow] = []
    for device in devices:
        settings = FolderSettings(min_copies=low)
        device.add_folder(device.folder_id, settings)
        others = [other for other in devices if other is not device]
        for i, pair in enumerate(made):
            placed = [place(first, device, row) for row in pair]
            device.refer(b"file %d" % i, placed)
            for row in placed:
                for other in others:
                    device.note_copy(row, other)
        for other in others:
            device.note_copy(device.root_bundle, other)
        device.acknowledge(*others)
    rows = [data for data, _ in made]
    return rows


def place(owner: Device, device: Device, row: BundleRow) -> BundleRow:
    if device is owner:
        return row
    target = device.bundles.path(row.bundle_id)
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(owner.bundles.path(row.bundle_id), target)
    mine = row._replace(folder=device.folder, id=0)
    return mine._replace(id=device.catalog.write(lambda db: blocks.put_bundle(db, mine)).result())


def row_at(device: Device, bundle_id: BundleId) -> BundleRow:
    row = device.catalog.view(lambda db: blocks.get_bundle(db, bundle_id))
    assert row is not None
    return row


def watch(group: Group, low: int) -> list[str]:
    """Notes every unlink that leaves too few."""
    broken: list[str] = []
    for device in group.nodes:
        purge = device.bundles.purge

        def purging(bundle_id: BundleId, device: Device = device, purge: Any = purge) -> None:
            purge(bundle_id)
            left = group.copies_of(bundle_id)
            if left < low:
                broken.append(f"{device.name} left {left}")

        device.bundles.purge = purging
    return broken


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.parametrize("low", [1, 2])
async def test_all_at_once(group: Group, number: int, low: int) -> None:
    rows = await sharing(group, number, bundles=3, low=low)
    broken = watch(group, low)

    async def one(device: Device) -> int:
        mine = [row_at(device, row.bundle_id) for row in rows]
        return (await device.evictor.evict(mine, lambda _: None)).bundles

    freed = await asyncio.gather(*(one(device) for device in group.nodes))

    assert not broken
    for row in rows:
        assert group.copies_of(row.bundle_id) >= low
    for device in group.nodes:
        assert device.bundles.trash() == []
        assert not device.promises.removals
        for row in rows:
            state = row_at(device, row.bundle_id).state
            assert device.bundles.has(row.bundle_id) is (state == BundleState.SEALED)
    assert sum(freed) <= len(rows) * (number - low)


class Pauses:
    """Pauses in a time of their own, against which an attempt is short: when everybody pauses or is
    done, the one whose pause ends first wakes, alone."""

    def __init__(self, awake: int) -> None:
        self._awake = awake
        self._now = 0.0
        self._asleep: list[tuple[float, int, asyncio.Event]] = []

    async def pause(self, seconds: float) -> None:
        wakes = asyncio.Event()
        heapq.heappush(self._asleep, (self._now + seconds, len(self._asleep), wakes))
        self.done()
        await wakes.wait()

    def done(self) -> None:
        self._awake -= 1
        if not self._awake and self._asleep:
            self._now, _, wakes = heapq.heappop(self._asleep)
            self._awake += 1
            wakes.set()


async def test_a_storm_of_busy_ends(group: Group) -> None:
    """All begin at once; who gives up pauses for a time of its own, and as many go as may."""
    rows = await sharing(group, 4, low=2)
    broken = watch(group, 2)
    pauses = Pauses(awake=4)

    async def one(device: Device) -> int:
        device.at_pause = lambda: pauses.pause(device.pauses[-1])
        freed = await device.evictor.evict([row_at(device, rows[0].bundle_id)], lambda _: None)
        pauses.done()
        return freed.bundles

    freed = await asyncio.gather(*(one(device) for device in group.nodes))

    assert any(device.pauses for device in group.nodes), "it was a storm"
    assert not broken
    assert sum(freed) == 2, "two could go, and two did"
    assert group.copies_of(rows[0].bundle_id) == 2


async def test_busy_of_one_holder_is_tried_again(group: Group) -> None:
    """One holder is removing its copy, gives up, and then confirms."""
    rows = await sharing(group, 3, low=2)
    a, b, _ = group.nodes
    bundle_id = rows[0].bundle_id
    b.promises.begin_removal(bundle_id)
    a.at_pause = lambda: b.promises.end_removal(bundle_id)

    freed = await a.evictor.evict([row_at(a, bundle_id)], lambda _: None)

    assert freed.bundles == 1
    assert len(a.pauses) == 1
    assert 1.0 <= a.pauses[0] <= 60.0


async def test_busy_for_ever_gives_up(group: Group) -> None:
    rows = await sharing(group, 3, low=2)
    a, b, c = group.nodes
    bundle_id = rows[0].bundle_id
    b.promises.begin_removal(bundle_id)

    freed = await a.evictor.evict([row_at(a, bundle_id)], lambda _: None)

    assert list(freed.waiting) == ["another node is evicting it too"]
    assert a.bundles.has(bundle_id)
    assert c.promises.locked_for(bundle_id) == 0
    assert b.bundles.has(bundle_id)


async def test_a_copy_that_another_relies_on_stays(group: Group) -> None:
    rows = await sharing(group, 3, low=2)
    a, b, _ = group.nodes
    bundle_id = rows[0].bundle_id
    a.promises.lock(bundle_id, b.node_id, 600.0)

    freed = await a.evictor.evict([row_at(a, bundle_id)], lambda _: None)

    assert list(freed.waiting) == ["another node relies on this copy just now"]
    assert a.bundles.has(bundle_id)


@pytest.mark.parametrize("seed", range(6))
async def test_links_cut_at_random_moments(group: Group, seed: int) -> None:
    dice = random.Random(seed)
    number, low = dice.choice([(3, 1), (4, 2), (5, 2), (5, 3)])
    rows = await sharing(group, number, bundles=2, low=low)
    broken = watch(group, low)

    async def cutter() -> None:
        while True:
            for _ in range(dice.randrange(1, 120)):
                await asyncio.sleep(0)
            group.network.unreachable.clear()
            if dice.random() < 0.5:
                group.network.unreachable.add(group.addresses[dice.choice(group.nodes).node_id])
            links = [link for node in group.nodes for link in node.transport.links()]
            for link in dice.sample(links, min(len(links), dice.randrange(3))):
                link.abort()

    async def one(device: Device) -> None:
        for _ in range(3):
            mine = [row_at(device, row.bundle_id) for row in rows]
            await device.evictor.evict(mine, lambda _: None)

    cutting = asyncio.create_task(cutter())
    await asyncio.gather(*(one(device) for device in group.nodes))
    cutting.cancel()
    await asyncio.gather(cutting, return_exceptions=True)

    assert not broken, seed
    for row in rows:
        assert group.copies_of(row.bundle_id) >= low, seed
    for device in group.nodes:
        assert device.bundles.trash() == []
        assert not device.promises.removals


@pytest.mark.parametrize("seed", range(3))
async def test_each_evicts_what_it_opened_and_the_others_hold(group: Group, seed: int) -> None:
    dice = random.Random(seed)
    devices: list[Device] = await group.devices(4)
    filed = [(device, device.protect(f"file {i}")) for device in devices for i in range(2)]
    for device in devices:
        await device.copy_to(*dice.sample([d for d in devices if d is not device], 3))
    broken = watch(group, 2)

    await asyncio.gather(*(device.evict(f.data) for device, f in filed))

    assert not broken
    for device, one in filed:
        assert not device.is_here(one.data)
        assert group.copies_of(one.data.bundle_id) >= 2

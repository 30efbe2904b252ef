"""Random histories of a device and its holders: whatever is merged, and wherever it is cut off, no
file ever has fewer copies than before, and no copy is counted that is not there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from p2pstore.content import BundleRef, bundle_tag
from p2pstore.maintenance import recover, take_in
from p2pstore.policy import merging
from p2pstore.restore import Wanted
from p2pstore.store import BundleState, blocks, copies
from tests.maintenance.collecting import Killed
from tests.swarm.world import TAG_SECRET

from .nodes import Device, Filed, Group

DAY = 86_400.0
STEPS = 60
WHAT = (
    "protect protect protect copy copy copy days days merge merge merge die die collect evict fetch"
)
SEEDS = range(int(os.environ.get("P2PSTORE_MERGE_SEEDS", "4")))
CHANGES = ("create", "adopt", "to_trash", "from_trash", "purge")


class History:
    def __init__(self, group: Group, device: Device, others: list[Device], seed: int) -> None:
        self.group, self.device, self.others = group, device, others
        self.rng = random.Random(seed)
        self.made: list[Filed] = []
        self.wanted: dict[int, list[Wanted]] = {}  # file -> what its manifest names for ever
        self.counted: dict[int, int] = {}

    async def step(self) -> str:
        what = self.rng.choice(WHAT.split())
        await getattr(self, what)()
        return what

    async def protect(self) -> None:
        one = self.device.protect(f"file {len(self.made)}")
        self.made.append(one)
        self.wanted[one.file] = [
            Wanted(BundleRef(row.bundle_id, row.tag), entry.block_id)
            for row in (one.data, one.meta)
            for entry in self.device.bundles.index(row.bundle_id).blocks.entries
        ]

    async def copy(self) -> None:
        self.device.replicator.look_anew()
        for other in self.rng.sample(self.others, self.rng.randrange(1, 4)):
            await self.device.replicator.serve(other.node_id)
            self.device.acknowledge(other)

    async def days(self) -> None:
        self.group.clock.advance(self.rng.choice([0.4, 1.1, 3, 8]) * DAY)

    async def merge(self) -> None:
        await self.device.merge()

    async def collect(self) -> None:
        self.device.acknowledge(*self.others)
        await self.device.collector.run()

    async def evict(self) -> None:
        if self.made:
            one = self.rng.choice(self.made)
            rows = self.device.catalog.view(lambda db: blocks.bundles_of_file(db, one.file))
            await self.device.evict(*rows)

    async def fetch(self) -> None:
        gone = (BundleState.EVICTED,)
        rows = self.device.catalog.view(lambda db: blocks.list_bundles(db, states=gone))
        if rows:
            refetcher = self.group.refetcher(self.device, free=lambda: 1 << 40)
            await refetcher.refetch(self.rng.choice(rows))

    async def die(self) -> None:
        """In a merge, or in what collects, before some change of catalog or store."""
        device, left = self.device, self.rng.randrange(1, 14)

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return real(*args, **kwargs)

            return call

        changed = [(device.catalog, "write"), *((device.bundles, name) for name in CHANGES)]
        for owner, name in changed:
            setattr(owner, name, counted(getattr(owner, name)))
        try:
            await device.merge()
            await device.collector.run()
        except Killed:
            pass
        finally:
            for owner, name in changed:
                delattr(owner, name)
        device.promises.removals.clear()
        device.wire()
        recover(device.catalog, device.bundles)
        take_in(
            device.catalog,
            device.bundles,
            me=device.public,
            tag_of=lambda bundle_id: bundle_tag(TAG_SECRET, bundle_id),
        )

    # -- what must hold ---------------------------------------------------------------------------

    async def check(self) -> None:
        device = self.device
        counts = device.ledger.counts(device.look())
        for one in self.made:
            rows = device.catalog.view(lambda db, n=one.file: blocks.bundles_of_file(db, n))
            assert len(rows) == 2
            for row in rows:
                assert row.state in (BundleState.SEALED, BundleState.EVICTED)
                assert device.bundles.has(row.bundle_id) == (row.state == BundleState.SEALED)
                self._copies_are_there(row)
            number = min(counts.get(row.id, 0) for row in rows)
            assert number >= self.counted.get(one.file, 0), "a copy was given away"
            self.counted[one.file] = number
        for wanted in self.wanted.values():
            found = await device.source.blocks(wanted)
            assert len(found) == len(wanted)

    def _copies_are_there(self, row: blocks.BundleRow) -> None:
        for node_id, copy in self.device.copies(row).items():
            if copy.state == copies.CopyState.PROVED:
                holder = next(other for other in self.others if other.node_id == node_id)
                assert holder.held.has(row.bundle_id)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_file_loses_a_copy(
    group: Group, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FEWEST", 2)
    device, *others = await group.devices(4)
    for other in others:
        await device.connections.connect(other.node_id)
    history = History(group, device, others, seed)
    done: list[str] = []
    for _ in range(4):
        await history.protect()
    try:
        for _ in range(STEPS):
            done.append(await history.step())
            await history.check()
    except BaseException:
        print(f"seed {seed}:", *done, sep="\n  ")
        raise
    group.clock.advance(1.1 * DAY)
    await history.merge()
    device.replicator.look_anew()
    await device.copy_to(*others)
    await history.merge()
    await history.check()
    assert device.catalog.read("SELECT count(*) FROM aliases")[0][0], "some were merged"

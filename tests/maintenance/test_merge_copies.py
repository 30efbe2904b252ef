"""What is merged keeps its copies: holders let go of the old bundles only when the new one is safe,
and whoever knows only the old names finds it."""

from __future__ import annotations

import sqlite3
from functools import partial

import pytest

from p2pstore.content import BundleRef, Kind
from p2pstore.errors import IntegrityError
from p2pstore.ids import BlockId, BundleId
from p2pstore.maintenance.audit import Auditor
from p2pstore.node.known import Known
from p2pstore.policy import merging
from p2pstore.restore import Wanted
from p2pstore.store import BundleRow, BundleState, blocks, copies, merged
from p2pstore.wire import Unknown

from .nodes import NO_SETTINGS, Device, Filed, Group

DAY = 86_400.0
FILES = 4


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FEWEST", 3)


async def filled(group: Group, devices: int = 4) -> tuple[Device, list[Device], list[Filed]]:
    """Small files that all others hold copies of, a day ago."""
    a, *others = await group.devices(devices)
    made = [a.protect(f"file {i}") for i in range(FILES)]
    await a.copy_to(*others)
    group.clock.advance(1.1 * DAY)
    return a, others, made


def wanted(device: Device, bundle: BundleRow) -> list[Wanted]:
    """Its blocks, as a manifest names them."""
    entries = device.bundles.index(bundle.bundle_id).blocks.entries
    ref = BundleRef(bundle.bundle_id, bundle.tag)
    return [Wanted(ref, entry.block_id) for entry in entries]


def of_file(device: Device, one: Filed) -> dict[int, BundleRow]:
    rows = device.catalog.view(lambda db: blocks.bundles_of_file(db, one.file))
    return {row.kind: row for row in rows}


def new_ones(device: Device) -> list[BundleRow]:
    """The merged bundles, data first."""
    found = [
        row
        for row in device.catalog.view(blocks.list_bundles)
        if device.bundles.has(row.bundle_id) and device.bundles.index(row.bundle_id).blocks.replaces
    ]
    return sorted(found, key=lambda row: row.kind)


def held_by(group: Group, block_id: BlockId) -> int:
    """How many nodes hold the block for somebody."""
    return sum(_holds(node, block_id) for node in group.nodes)


def _holds(node: Device, block_id: BlockId) -> bool:
    for held in node.held.oldest():
        at = node.held.index(held.bundle_id).blocks.find(block_id)
        if at is not None and node.held.live_map(held.bundle_id).is_live(at):
            return True
    return False


class Watch:
    """No file may ever have fewer copies than at the beginning, and no block fewer holders."""

    def __init__(self, group: Group, device: Device, made: list[Filed]) -> None:
        self.group, self.device, self.made = group, device, made
        self.blocks = [w.block_id for one in made for w in wanted(device, one.data)]
        self.blocks += [w.block_id for one in made for w in wanted(device, one.meta)]
        self.least = self.counted()
        self.held = {block: held_by(group, block) for block in self.blocks}

    def counted(self) -> int:
        counts = self.device.ledger.counts(self.device.look())
        rows = [row for one in self.made for row in of_file(self.device, one).values()]
        return min(counts.get(row.id, 0) for row in rows)

    def look(self) -> None:
        assert self.counted() >= self.least
        for block, number in self.held.items():
            assert held_by(self.group, block) >= number


async def test_the_new_one_takes_its_place_when_it_has_its_copies(group: Group) -> None:
    a, others, made = await filled(group)
    watch = Watch(group, a, made)
    await a.merge()
    watch.look()
    await a.merge()
    assert of_file(a, made[0]) == {1: a.row(made[0].data), 2: a.row(made[0].meta)}
    for other in others:
        watch.look()
        assert a.is_here(made[0].data)
        await a.copy_to(other)
        await a.merge()
    watch.look()
    data, meta = new_ones(a)
    assert of_file(a, made[0]) == {1: data, 2: meta}
    assert {copy.state for copy in a.copies(data).values()} == {copies.CopyState.PROVED}
    assert not a.is_here(made[0].data)
    assert a.row(made[0].data).state == BundleState.DEAD
    assert all(other.held.has(made[0].data.bundle_id) for other in others)
    for day in range(1, 10):
        group.clock.advance(DAY)
        await a.collector.run()
        watch.look()
        has = [other.held.has(made[0].data.bundle_id) for other in others]
        assert all(has) or day >= 7
    assert a.catalog.view(lambda db: blocks.exactly(db, made[0].data.bundle_id)) is None
    assert not any(has)
    assert a.bundles.trash() == []
    # A bundle, a receipt, an audit and a side file each instead of one for each file.
    assert all(len(other.held.oldest()) == 3 for other in others)


async def switched(group: Group) -> tuple[Device, list[Device], list[Filed], list[Wanted]]:
    a, others, made = await filled(group)
    data = [w for one in made for w in wanted(a, one.data)]
    await a.merge()
    await a.copy_to(*others)
    await a.merge()
    assert not a.is_here(made[0].data)
    return a, others, made, data


async def released(group: Group) -> tuple[Device, list[Device], list[Filed], list[Wanted]]:
    a, others, made, data = await switched(group)
    group.clock.advance(8 * DAY)
    await a.collector.run()
    assert not any(other.held.has(made[0].data.bundle_id) for other in others)
    return a, others, made, data


async def test_old_copies_stay_while_the_new_ones_are_not_there_any_more(group: Group) -> None:
    a, others, made, _ = await switched(group)
    data, _ = new_ones(a)
    lost = others[0]
    lost.held.release(data.bundle_id)
    a.catalog.write(lambda db: copies.set_state(db, data.id, lost.node_id, "lost")).result()
    group.clock.advance(8 * DAY)
    await a.collector.run()
    assert all(other.held.has(made[0].data.bundle_id) for other in others)
    assert made[0].data.bundle_id in a.bundles.trash()
    assert not any(other.held.has(made[0].meta.bundle_id) for other in others), "that one is safe"
    await a.copy_to(lost)
    await a.collector.run()
    assert not any(other.held.has(made[0].data.bundle_id) for other in others)
    assert a.bundles.trash() == []


async def test_old_copies_stay_while_the_new_bundle_is_nowhere(group: Group) -> None:
    a, others, made, _ = await switched(group)
    data, _ = new_ones(a)
    a.bundles.to_trash(data.bundle_id)
    a.bundles.purge(data.bundle_id)
    group.clock.advance(8 * DAY)
    await a.collector.run()
    assert made[0].data.bundle_id in a.bundles.trash()
    assert all(other.held.has(made[0].data.bundle_id) for other in others)


async def test_another_device_reads_by_the_old_names(group: Group) -> None:
    a, others, made, data = await released(group)
    newcomer = group.device("newcomer")
    for other in others:
        await newcomer.knows(other)
        await newcomer.connections.connect(other.node_id)
    found = await newcomer.source.blocks(data)
    assert found.keys() == {one.block_id for one in data}
    index = [
        Wanted(BundleRef(one.meta.bundle_id, one.meta.tag), w.block_id)
        for one in made[:1]
        for w in meta_of(a, one)
    ]
    assert len(await newcomer.source.blocks(index)) == 6


def meta_of(device: Device, one: Filed) -> list[Wanted]:
    """Its blocks by the old name, though it is merged."""
    row = of_file(device, one)[int(Kind.META)]
    return wanted(device, row)[:6]


async def test_it_is_found_by_its_old_tag_alone(group: Group) -> None:
    """A device that is neither told an id nor knows a holder looks for the tag."""
    _, others, made, data = await released(group)
    for other in others:
        place = other.shelf.find_tag(made[0].data.tag)
        assert place is not None
        assert made[0].data.tag in other.held.tags()
    nameless = [Wanted(BundleRef(BundleId(bytes(32)), w.ref.tag), w.block_id) for w in data[:6]]
    newcomer = group.device("newcomer")
    await newcomer.knows(others[1])
    await newcomer.connections.connect(others[1].node_id)
    assert len(await newcomer.source.blocks(nameless)) == 6


async def test_evicted_it_is_read_and_fetched_back_by_the_old_names(group: Group) -> None:
    a, others, made, data = await released(group)
    merged_data, _ = new_ones(a)
    assert await a.evict(merged_data) == {}
    assert not a.is_here(merged_data)
    for other in others:
        await a.connections.connect(other.node_id)
    found = await a.source.blocks(data)
    assert found.keys() == {one.block_id for one in data}
    row = a.catalog.view(lambda db: blocks.get_bundle(db, made[2].data.bundle_id))
    assert row is not None
    await group.refetcher(a, free=lambda: 1 << 40).refetch(row)
    assert a.is_here(merged_data)
    assert a.bundles.index(merged_data.bundle_id).blocks.replaces
    assert not others[0].held.lost


async def test_an_evicted_bundle_is_not_merged(group: Group) -> None:
    a, _, made = await filled(group)
    assert await a.evict(made[0].data) == {}
    await a.merge()
    (data, _) = new_ones(a)
    names = {old.bundle_id for old in a.bundles.index(data.bundle_id).blocks.replaces}
    assert made[0].data.bundle_id not in names


async def test_evicted_while_it_waits_it_is_replaced_all_the_same(group: Group) -> None:
    a, others, made = await filled(group)
    watch = Watch(group, a, made)
    await a.merge()
    assert await a.evict(made[0].data) == {}
    await a.copy_to(*others)
    await a.merge()
    watch.look()
    assert of_file(a, made[0])[1] == new_ones(a)[0]
    group.clock.advance(8 * DAY)
    await a.collector.run()
    watch.look()
    assert not any(other.held.has(made[0].data.bundle_id) for other in others)


async def test_a_holder_says_what_was_merged(group: Group) -> None:
    a, others, made, _ = await released(group)
    b = others[0]
    ids = [one.data.bundle_id for one in made] + [BundleId(b"?" * 32), a.root_bundle.bundle_id]
    listed = [index async for index in a.pusher.merged(ids, b.node_id)]
    data, _ = new_ones(a)
    assert [index.header.bundle_id for index in listed] == [data.bundle_id], "told once"
    with pytest.raises(Unknown):
        await a.pusher.block_list(made[0].data.bundle_id, b.node_id)
    with pytest.raises(Unknown):
        await a.pusher.challenge(made[0].data.bundle_id, b.node_id, 0)


async def test_samples_of_an_evicted_merged_bundle_are_known(group: Group) -> None:
    """An audit without own bytes asks for blocks that manifests name, by old ids."""
    a, others, made = await filled(group)
    number = a.file_of(b"with manifest", made[0].data, [0, 2])
    await a.merge()
    await a.copy_to(*others)
    await a.merge()
    data, _ = new_ones(a)
    assert number in a.catalog.view(lambda db: blocks.files_of_bundle(db, data.id))

    async def of(raw: bytes) -> list[Wanted]:
        return wanted_old

    entries = a.bundles.index(data.bundle_id).blocks.entries
    ref = BundleRef(made[0].data.bundle_id, made[0].data.tag)
    wanted_old = [Wanted(ref, entries[0].block_id)]
    auditor = Auditor(
        catalog=a.catalog,
        store=a.bundles,
        pusher=a.pusher,
        blocks_of=of,
        world=a.look,
        connected=list,
        name_of=str,
        lied=lambda _: None,
        clock=a.clock,
        pool=group.pool,
    )
    assert await auditor._known_blocks(data) == [entries[0].block_id]


async def test_a_lonely_node_merges_what_was_never_copied(group: Group) -> None:
    (a,) = await group.devices(1)
    made = [a.protect(f"file {i}") for i in range(FILES)]
    group.clock.advance(1.1 * DAY)
    await a.merge()
    await a.merge()
    assert not a.is_here(made[0].data)
    assert len(new_ones(a)) == 2


async def test_with_one_other_device_one_copy_is_enough(group: Group) -> None:
    a, others, made = await filled(group, devices=2)
    await a.merge()
    await a.merge()
    assert a.is_here(made[0].data)
    await a.copy_to(*others)
    await a.merge()
    assert not a.is_here(made[0].data)


async def test_what_several_folders_need_is_left_alone(group: Group) -> None:
    a, _, made = await filled(group)
    other = a.add_folder(a.folder_id[::-1], NO_SETTINGS)
    a.refer(b"elsewhere", [made[0].data], folder=other)
    await a.merge()
    data, _ = new_ones(a)
    listed = {old.bundle_id for old in a.bundles.index(data.bundle_id).blocks.replaces}
    assert made[0].data.bundle_id not in listed


async def test_what_is_pinned_is_merged_with_what_is_pinned(group: Group) -> None:
    a, _, made = await filled(group)
    a.catalog.write(
        lambda db: db.execute("UPDATE files SET pinned=1 WHERE id=?", (made[0].file,))
    ).result()
    await a.merge()
    for row in new_ones(a):
        listed = {old.bundle_id for old in a.bundles.index(row.bundle_id).blocks.replaces}
        assert made[0].data.bundle_id not in listed
        assert made[0].meta.bundle_id not in listed


@pytest.mark.parametrize("root", ["upload:1", "share:1", "superseded:00:1", "journal:4"])
async def test_what_something_else_keeps_is_left_alone(group: Group, root: str) -> None:
    a, _, made = await filled(group)
    a.catalog.write(lambda db: blocks.add_root(db, root, [made[0].data.id])).result()
    await a.merge()
    (data, _) = new_ones(a)
    listed = {old.bundle_id for old in a.bundles.index(data.bundle_id).blocks.replaces}
    assert made[0].data.bundle_id not in listed


async def test_old_tags_are_announced_for_the_new_bundle(group: Group) -> None:
    a, _, made, _ = await switched(group)
    known = Known(a.catalog, tuple)
    assert {one.data.tag for one in made} <= set(known.tags())
    assert known.by_tag(made[0].data.tag) == new_ones(a)[0].bundle_id
    holders = known.holders([made[0].data.bundle_id])
    assert len(holders[made[0].data.bundle_id]) == 3


async def test_the_new_bundle_is_told_of_in_doubt_by_nobody_else(group: Group) -> None:
    """A holder that sends the list of a bundle that replaces nothing is no help, and no harm."""
    a, others, _, _ = await released(group)
    data, _ = new_ones(a)
    ids = [data.bundle_id]
    assert [one async for one in a.pusher.merged(ids, others[0].node_id)] == []
    with pytest.raises((Unknown, IntegrityError)):
        await a.pusher.block_list(BundleId(b"?" * 32), others[0].node_id)


def _row(number: int, db: sqlite3.Connection) -> BundleRow | None:
    return blocks.by_rowid(db, number)


async def test_what_a_holder_tells_of_after_a_rebuild_is_let_go_of(group: Group) -> None:
    """The row of an old bundle comes from a holder's word only; its id stands for the new one."""
    a, others, made, _ = await released(group)
    old = made[1].data._replace(state=BundleState.EVICTED, folder=None, blocks=0, id=0)
    number = a.catalog.write(lambda db: blocks.put_bundle(db, old)).result()
    others[0].held.take_back(old.bundle_id)
    a.note_copy(old._replace(id=number), others[0])
    data, _ = new_ones(a)
    assert (await a.collector.run(), await a.collector.run()) == (1, 0)
    assert a.catalog.view(partial(_row, number)) is None
    assert not others[0].held.has(old.bundle_id)
    assert a.row(data).state == BundleState.SEALED


async def test_aliases_go_when_the_merged_bundle_is_gone(group: Group) -> None:
    a, _, made, _ = await released(group)
    data, _ = new_ones(a)
    assert a.catalog.view(partial(_row, data.id)) is not None
    names = a.catalog.view(lambda db: merged.names(db, data.id))
    assert set(names) == {one.data.bundle_id for one in made}

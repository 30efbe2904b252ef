"""What is collected, and above all what is not."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from p2pstore.content import Kind
from p2pstore.errors import P2PStoreError
from p2pstore.maintenance import recover
from p2pstore.maintenance.index import superseded_root
from p2pstore.maintenance.rebuild import State as Rebuilding
from p2pstore.maintenance.rebuild import save_state
from p2pstore.store import BundleRow, BundleState, IntentKind, blocks, copies, dying, journal

from .nodes import DAY_MS, Device, Group


def supersede(device: Device, name: str = "old index") -> BundleRow:
    row = device.bundle(name, Kind.META)
    root = superseded_root(device.folder_id, int(device.clock.wall() * 1000))
    device.catalog.write(lambda db: blocks.add_root(db, root, [row.id])).result()
    return row


async def turn(device: Device, times: int = 2) -> int:
    return sum([await device.collector.run() for _ in range(times)])


async def week_later(group: Group, device: Device) -> int:
    """What is dead has been in the trash for its time."""
    await turn(device, 1)
    group.clock.advance(7 * 86_400)
    return await turn(device, 1)


def proved(device: Device, row: BundleRow) -> int:
    """How many holders proved its present live map."""
    found = device.copies(row).values()
    now = device.row(row).seq
    return sum(copy.state == copies.CopyState.PROVED and copy.seq == now for copy in found)


def is_known(device: Device, row: BundleRow) -> bool:
    return device.catalog.view(lambda db: blocks.by_rowid(db, row.id)) is not None


async def settled(group: Group) -> tuple[Device, list[Device], BundleRow]:
    """A superseded bundle that two others hold, eight days later."""
    a, *others = await group.devices(3)
    row = supersede(a)
    await a.copy_to(*others)
    group.clock.advance(8 * 86_400)
    return a, others, row


async def test_a_superseded_index_goes_everywhere(group: Group) -> None:
    a, others, row = await settled(group)
    assert await turn(a) == 0
    assert a.row(row).state == BundleState.DEAD
    assert a.bundles.trash() == [row.bundle_id]
    assert all(other.held.has(row.bundle_id) for other in others)
    group.clock.advance(7 * 86_400 - 60)
    assert await turn(a) == 0
    assert a.bundles.trash() == [row.bundle_id]
    group.clock.advance(60)
    assert await turn(a) == 1
    assert not a.is_here(row)
    assert a.bundles.trash() == []
    assert not is_known(a, row)
    assert all(not other.held.has(row.bundle_id) for other in others)
    assert all(row.bundle_id in other.held.trashed() for other in others), "7 days in their trash"
    assert a.is_here(a.root_bundle)
    assert a.copies(a.root_bundle)


async def test_not_before_seven_days(group: Group) -> None:
    a, *others = await group.devices(3)
    row = supersede(a)
    await a.copy_to(*others)
    group.clock.advance(6.9 * 86_400)
    assert await turn(a) == 0
    assert a.is_here(row)


KEEPS: dict[str, Any] = {
    "rebuilding": lambda a, r, db: None,
    "rebuilt lately": lambda a, r, db: save_state(
        db, Rebuilding(int(a.clock.wall() * 1000) - 29 * DAY_MS, False, 0)
    ),
    "rebuild pending": lambda a, r, db: save_state(db, Rebuilding(1, True, 0)),
    "lists that could not be read": lambda a, r, db: save_state(db, Rebuilding(1, False, 2)),
    "the published index": lambda a, r, db: blocks.add_root(
        db, f"index:{a.folder_id.hex()}", [r.id]
    ),
    "another root": lambda a, r, db: blocks.add_root(db, "upload:1", [r.id]),
    "an open ingest": lambda a, r, db: blocks.claim(db, "journal:9", [r.id]),
    "a holder without the newest head": lambda a, r, db: db.execute(
        "DELETE FROM head_acks WHERE holder=?", (a.world.nodes[1].node_id,)
    ),
}


@pytest.mark.parametrize("name", KEEPS)
async def test_it_is_kept_for(group: Group, name: str) -> None:
    a, others, row = await settled(group)

    def change(db: sqlite3.Connection) -> None:
        KEEPS[name](a, row, db)

    a.catalog.write(change).result()
    if name == "rebuilding":
        a.facts = replace(a.facts, rebuilding=True)
    assert await turn(a) == 0
    assert a.is_here(row)
    assert a.row(row).state == BundleState.SEALED
    assert all(other.held.has(row.bundle_id) for other in others)
    assert not a.catalog.view(lambda db: journal.all_open(db, IntentKind.EVICT))


@pytest.mark.parametrize("what", ["file", "history"])
async def test_a_bundle_that_a_version_needs_is_kept(group: Group, what: str) -> None:
    a, others, row = await settled(group)
    number = a.refer(b"x", [row])
    if what == "history":
        query = "INSERT INTO history_bundles (history, bundle) VALUES (7, ?)"

        def change(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM file_bundles WHERE file=?", (number,))
            db.execute(query, (row.id,))

        a.catalog.write(change).result()
    assert await turn(a) == 0
    assert a.is_here(row)
    assert all(other.held.has(row.bundle_id) for other in others)


# -- bundles of files ------------------------------------------------------------------------------


async def month_later(group: Group, device: Device) -> None:
    """Seen, and then nobody needed it for 30 days."""
    await turn(device, 1)
    group.clock.advance(30 * 86_400 + 60)
    await turn(device, 1)


async def test_a_bundle_that_nothing_needs_goes_everywhere(group: Group) -> None:
    a, *others = await group.devices(3)
    filed = a.protect("one")
    await a.copy_to(*others)
    await month_later(group, a)
    assert a.is_here(filed.data)
    a.catalog.write(lambda db: blocks.set_file_bundles(db, [(filed.file, [])])).result()
    await month_later(group, a)
    for row in (filed.data, filed.meta):
        assert a.row(row).state == BundleState.DEAD
        assert row.bundle_id in a.bundles.trash()
        assert all(other.held.has(row.bundle_id) for other in others)
    assert await week_later(group, a) == 2
    for row in (filed.data, filed.meta):
        assert not is_known(a, row)
        assert group.copies_of(row.bundle_id) == 0
        assert all(row.bundle_id in other.held.trashed() for other in others)


async def test_a_bundle_that_only_holders_have_is_released(group: Group) -> None:
    a, *others = await group.devices(3)
    filed = a.protect("one")
    await a.copy_to(*others)
    assert await a.evict(filed.data) == {}
    a.catalog.write(lambda db: blocks.set_file_bundles(db, [(filed.file, [])])).result()
    await month_later(group, a)
    assert not is_known(a, filed.data)
    assert all(filed.data.bundle_id in other.held.trashed() for other in others)


async def test_who_was_revoked_is_not_waited_for(group: Group) -> None:
    a, *others = await group.devices(3)
    row = a.bundle("one")
    await a.copy_to(*others)
    gone = others[0]
    a.leavers.add(gone.node_id)
    group.network.unreachable.add(group.addresses[gone.node_id])
    for link in gone.transport.links():
        link.abort()
    await month_later(group, a)
    assert await week_later(group, a) == 1
    assert not is_known(a, row)


async def partly(group: Group) -> tuple[Device, list[Device], BundleRow]:
    """A file needs the first two blocks of six, and two others hold the bundle."""
    a, *others = await group.devices(3)
    row = a.bundle("one")
    a.file_of(b"file", row, [0, 1])
    await a.copy_to(*others)
    return a, others, row


async def test_dead_blocks_are_punched_out_here_and_at_holders(group: Group) -> None:
    a, others, row = await partly(group)
    entries = a.bundles.index(row.bundle_id).blocks.entries
    await month_later(group, a)
    assert a.bundles.live_map(row.bundle_id).indices() == [0, 1]
    assert a.row(row).seq == 1
    assert a.row(row).bytes == entries[0].length + entries[1].length
    for other in others:
        assert other.held.live_map(row.bundle_id).seq == 1
        copy = a.copies(row)[other.node_id]
        assert (copy.state, copy.seq) == (copies.CopyState.PROVED, 1), "proved anew"
    assert proved(a, row) == 2


async def test_a_holder_that_is_away_gets_the_live_map_with_the_next_push(group: Group) -> None:
    a, (b, c), row = await partly(group)
    group.network.unreachable.add(group.addresses[b.node_id])
    for link in b.transport.links():
        link.abort()
    await month_later(group, a)
    assert b.held.live_map(row.bundle_id).seq == 0
    assert proved(a, row) == 1, "a copy of another list counts no more"
    group.network.unreachable.clear()
    group.clock.advance(60)
    assert await a.replicator.serve(b.node_id)
    assert b.held.live_map(row.bundle_id).seq == 1
    assert proved(a, row) == 2
    assert c.held.live_map(row.bundle_id).seq == 1


async def test_what_another_device_relies_on_just_now_is_punched_later(group: Group) -> None:
    a, (b, _), row = await partly(group)
    await turn(a, 1)
    group.clock.advance(31 * 86_400)
    a.promises.lock(row.bundle_id, b.node_id, 600.0)
    await turn(a, 1)
    assert a.row(row).seq == 0
    group.clock.advance(700)
    await turn(a, 1)
    assert a.row(row).seq == 1


async def test_a_file_whose_manifest_is_not_known_keeps_its_bundles_whole(group: Group) -> None:
    a, *_ = await group.devices(1)
    filed = a.protect("one")  # without a manifest in the catalog
    await month_later(group, a)
    assert a.catalog.view(dying.bundles) == []
    assert a.row(filed.data).seq == 0


async def test_an_unreadable_list_ends_the_turn(group: Group) -> None:
    """It never means that nothing is named."""
    a, *_ = await group.devices(1)
    dead, row = a.bundle("dead"), a.bundle("one")
    a.file_of(b"file", row, [0], depth=1)  # its list is a block that cannot be opened
    with pytest.raises(P2PStoreError):
        await turn(a, 1)
    group.clock.advance(31 * 86_400)
    with pytest.raises(P2PStoreError):
        await turn(a, 1)
    assert a.is_here(dead)
    assert a.row(row).seq == 0


async def test_a_folder_whose_head_is_behind_keeps_everything(group: Group) -> None:
    a, _, row = await settled(group)
    a.facts = replace(a.facts, heads={a.folder_id: (1, 7)}, clean=frozenset())  # type: ignore[arg-type]
    assert await turn(a) == 0
    assert a.is_here(row)


async def test_a_holder_that_is_away_is_asked_again(group: Group) -> None:
    a, (b, c), row = await settled(group)
    group.network.unreachable.add(group.addresses[b.node_id])
    for link in b.transport.links():
        link.abort()
    assert await week_later(group, a) == 0
    assert is_known(a, row)
    assert b.held.has(row.bundle_id)
    assert not c.held.has(row.bundle_id)
    assert row.id not in {r.id for r in a.ledger.lacking(a.look(), c.node_id, 100)}
    group.network.unreachable.clear()
    assert await turn(a) == 1
    assert not b.held.has(row.bundle_id)


async def test_a_locked_copy_is_asked_again(group: Group) -> None:
    a, (b, _), row = await settled(group)
    await turn(a)
    group.clock.advance(7 * 86_400)
    b.held.lock(row.bundle_id, a.node_id, 600.0, seq=0)
    assert await turn(a) == 0
    assert a.copies(row)[b.node_id].state == copies.CopyState.PROVED
    group.clock.advance(700)
    assert await turn(a) == 1


async def test_a_copy_that_another_device_relies_on_stays(group: Group) -> None:
    a, (b, _), row = await settled(group)
    a.promises.lock(row.bundle_id, b.node_id, 600.0)
    assert await turn(a) == 0
    assert a.is_here(row)


async def test_killed_in_the_middle(group: Group) -> None:
    a, _, row = await settled(group)
    real = a.bundles.to_trash

    class Killed(BaseException):
        pass

    def dies(bundle_id: Any) -> None:
        real(bundle_id)
        a.bundles.trash = list  # type: ignore[method-assign]
        a.catalog.write = _refuse  # type: ignore[method-assign]
        raise Killed

    def _refuse(*_: Any) -> Any:
        raise Killed

    a.bundles.to_trash = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        await turn(a)
    for name in ("to_trash", "trash"):
        a.bundles.__dict__.pop(name, None)
    a.catalog.__dict__.pop("write", None)
    recover(a.catalog, a.bundles)
    assert a.is_here(row)
    assert a.row(row).state == BundleState.SEALED
    a.promises.removals.clear()  # as a new process
    assert await week_later(group, a) == 1

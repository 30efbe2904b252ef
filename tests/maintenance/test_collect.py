"""What is collected, and above all what is not."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from p2pstore.content import Kind
from p2pstore.maintenance import recover
from p2pstore.maintenance.index import superseded_root
from p2pstore.maintenance.rebuild import State as Rebuilding
from p2pstore.maintenance.rebuild import save_state
from p2pstore.store import BundleRow, BundleState, IntentKind, blocks, copies, journal

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


async def test_bundles_of_files_are_never_collected(group: Group) -> None:
    """Also not when nothing here refers to them: another device's files may."""
    a, *others = await group.devices(3)
    filed = a.protect("one")
    await a.copy_to(*others)
    a.catalog.write(lambda db: blocks.set_file_bundles(db, [(filed.file, [])])).result()
    group.clock.advance(400 * 86_400)
    assert await turn(a) == 0
    assert a.is_here(filed.data)
    assert a.is_here(filed.meta)


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


@pytest.mark.parametrize("step", ["to_trash"])
async def test_killed_in_the_middle(group: Group, step: str) -> None:
    a, _, row = await settled(group)
    real = getattr(a.bundles, step)

    class Killed(BaseException):
        pass

    def dies(bundle_id: Any) -> None:
        if step == "to_trash":
            real(bundle_id)
        a.bundles.trash = list  # type: ignore[method-assign]
        a.catalog.write = _refuse  # type: ignore[method-assign]
        raise Killed

    def _refuse(*_: Any) -> Any:
        raise Killed

    setattr(a.bundles, step, dies)
    with pytest.raises(Killed):
        await turn(a)
    for name in (step, "trash"):
        a.bundles.__dict__.pop(name, None)
    a.catalog.__dict__.pop("write", None)
    recover(a.catalog, a.bundles)
    assert a.is_here(row)
    assert a.row(row).state == BundleState.SEALED
    a.promises.removals.clear()  # as a new process
    assert await week_later(group, a) == 1

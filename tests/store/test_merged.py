"""Old ids and tags stand for the bundle that their blocks lie in now."""

from __future__ import annotations

import sqlite3

from p2pstore.ids import BlockId
from p2pstore.store import BundleState, DedupRow, blocks, dying, merged

from .test_blocks import keys_of, made


def put(db: sqlite3.Connection, number: int, **changes: object) -> blocks.BundleRow:
    row = made(number, **changes)
    return row._replace(id=blocks.put_bundle(db, row))


def test_an_old_name_stands_for_the_new_bundle_while_the_old_row_is_there(
    db: sqlite3.Connection,
) -> None:
    old, new = put(db, 1), put(db, 2)
    merged.follow(db, old, new.id)
    for found in (blocks.get_bundle(db, old.bundle_id), blocks.by_tag(db, old.tag)):
        assert found is not None
        assert found.id == new.id
    assert blocks.exactly(db, old.bundle_id) == old
    assert merged.into(db, old.bundle_id) == new.id
    rows = merged.where(db, [old.bundle_id, new.bundle_id, made(3).bundle_id])
    assert {key: row.id for key, row in rows.items()} == {
        old.bundle_id: new.id,
        new.bundle_id: new.id,
    }
    assert merged.names(db, new.id) == [old.bundle_id]
    assert merged.tags(db) == [old.tag]


def test_names_of_a_bundle_that_is_merged_again_go_along(db: sqlite3.Connection) -> None:
    first, second, third = put(db, 1), put(db, 2), put(db, 3)
    merged.follow(db, first, second.id)
    merged.follow(db, second, third.id)
    assert sorted(merged.names(db, third.id)) == sorted([first.bundle_id, second.bundle_id])
    assert merged.names(db, second.id) == []
    blocks.forget_unreferenced(db, second.id)
    assert merged.into(db, first.bundle_id) == third.id


def test_whatever_needs_it_needs_the_new_one(db: sqlite3.Connection) -> None:
    old, new = put(db, 1, folder=4), put(db, 2, folder=None)
    blocks.set_file_bundles(db, [(7, [old.id]), (8, [old.id, new.id])])
    db.execute("INSERT INTO history_bundles VALUES (9, ?)", (old.id,))
    blocks.add_root(db, "index:f", [old.id])
    blocks.add_root(db, dying.SUPERSEDED + "f:1", [old.id])
    merged.follow(db, old, new.id)
    assert not dying.is_needed(db, old.id)
    assert blocks.files_of_bundle(db, new.id) == [7, 8]
    assert dying.earlier_references(db, [new.id]) == {9: {new.id}}
    assert blocks.roots_of(db, new.id) == ["index:f"]
    assert blocks.roots_of(db, old.id) == []
    row = blocks.by_rowid(db, new.id)
    assert row is not None
    assert row.folder == 4


def test_chunks_are_known_where_their_blocks_lie_now(db: sqlite3.Connection) -> None:
    old, new = put(db, 1), put(db, 2)
    here, gone = BlockId(b"h" * 32), BlockId(b"g" * 32)
    one, two = keys_of(1, 2)
    rows = [
        DedupRow(one, old.id, 0, here, bytes(32), 0, 5),
        DedupRow(two, old.id, 1, gone, bytes(32), 0, 5),
    ]
    blocks.insert_dedup(db, rows)
    merged.move_chunks(db, old.id, new.id, {here: 17})
    known = blocks.lookup_many(db, [one, two])
    assert {key: (place.bundle, place.idx) for key, place in known.items()} == {one: (new.id, 17)}


def test_a_merge_under_way_is_a_root(db: sqlite3.Connection) -> None:
    new = put(db, 1, state=BundleState.SEALED)
    blocks.add_root(db, merged.root_of(new.bundle_id), [new.id])
    assert merged.under_way(db) == [new.bundle_id]
    assert dying.is_pinned(db, new.id)

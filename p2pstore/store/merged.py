"""Rows of bundles that were merged into another one: their ids live on as aliases of it.

An alias is written in the change that moves everything that referred to the old bundle. From then
on the old one is asked for by nobody: its id and its tag stand for the new one, also while its own
row, dead, waits until its holders were told to let go of it.

A merge under way is a root, "merge:<id of the new bundle>", that keeps the new bundle and those
that it is to replace; nothing else knows of it, so that ending it is dropping the root.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from p2pstore.ids import BlockId, BundleId, Tag
from p2pstore.store import blocks, dying
from p2pstore.store.blocks import BundleRow
from p2pstore.store.rows import rows_in

MERGES = "merge:"


def root_of(bundle_id: BundleId) -> str:
    """Under this name the bundle and those that it is to replace are kept meanwhile."""
    return MERGES + bundle_id.hex()


def under_way(db: sqlite3.Connection) -> list[BundleId]:
    """The new bundles of all merges that are not ended."""
    roots = blocks.roots_with(db, MERGES)
    return [BundleId(bytes.fromhex(root.removeprefix(MERGES))) for root in roots]


def into(db: sqlite3.Connection, bundle_id: BundleId) -> int | None:
    """The row of the bundle that this one was merged into."""
    row = db.execute("SELECT bundle FROM aliases WHERE alias=?", (bundle_id,)).fetchone()
    return None if row is None else int(row[0])


def where(db: sqlite3.Connection, ids: Sequence[BundleId]) -> dict[BundleId, BundleRow]:
    """By each id, be it an old one, the row of the bundle in which its blocks lie now."""
    query = "SELECT alias, bundle FROM aliases WHERE alias IN ({keys})"
    found: dict[BundleId, BundleRow] = {}
    for alias, number in rows_in(db, query, ids):
        row = blocks.by_rowid(db, number)
        if row is not None:
            found[BundleId(alias)] = row
    plain = [bundle_id for bundle_id in ids if bundle_id not in found]
    return {**blocks.get_bundles(db, plain), **found}


def names(db: sqlite3.Connection, bundle: int) -> list[BundleId]:
    """The ids that stand for it beside its own."""
    return [BundleId(alias) for alias, _ in blocks.aliases_of(db, bundle)]


def tags(db: sqlite3.Connection) -> list[Tag]:
    """Old tags of the bundles that are sealed here."""
    query = (
        "SELECT a.tag FROM aliases a JOIN bundles b ON b.id=a.bundle"
        " WHERE b.state='sealed' ORDER BY a.tag"
    )
    return [Tag(tag) for (tag,) in db.execute(query)]


def replaced(db: sqlite3.Connection) -> list[BundleRow]:
    """Bundles that nothing asks for any more, because their ids stand for another one, and whose
    end has not begun: a holder told of them after a rebuild, or their file came back."""
    query = (
        "SELECT b.id FROM aliases a JOIN bundles b ON b.bundle_id=a.alias"
        " WHERE b.state IN ('sealed', 'evicted') ORDER BY b.id"
    )
    rows = [blocks.by_rowid(db, number) for (number,) in db.execute(query).fetchall()]
    return [row for row in rows if row is not None]


def follow(db: sqlite3.Connection, old: BundleRow, new: int) -> None:
    """Whatever needs the old bundle needs the new one from now on, under the old names too."""
    db.execute(
        "DELETE FROM roots WHERE bundle=? AND root>=? AND root<?",
        (old.id, dying.SUPERSEDED, dying.SUPERSEDED + "\U0010ffff"),  # they keep nothing alive
    )
    for table, key in (("file_bundles", "file"), ("history_bundles", "history"), ("roots", "root")):
        db.execute(
            f"INSERT OR IGNORE INTO {table} ({key}, bundle)"
            f" SELECT {key}, ?2 FROM {table} WHERE bundle=?1",
            (old.id, new),
        )
        db.execute(f"DELETE FROM {table} WHERE bundle=?", (old.id,))
    db.execute("UPDATE aliases SET bundle=? WHERE bundle=?", (new, old.id))
    blocks.add_alias(db, old.bundle_id, old.tag, new)
    db.execute("UPDATE bundles SET folder=? WHERE id=? AND folder IS NULL", (old.folder, new))
    for table in ("examined", "dying", "unnamed"):  # what was found before is of the past
        db.execute(f"DELETE FROM {table} WHERE bundle IN (?,?)", (old.id, new))


def move_chunks(db: sqlite3.Connection, old: int, new: int, places: Mapping[BlockId, int]) -> None:
    """Chunks known in the old bundle are known in the new one; `places`: where its blocks lie."""
    found = db.execute("SELECT key, block_id FROM dedup WHERE bundle=?", (old,)).fetchall()
    moved = [(new, places[block_id], key) for key, block_id in found if block_id in places]
    db.executemany("UPDATE dedup SET bundle=?, idx=? WHERE key=?", moved)
    blocks.forget_chunks(db, old)

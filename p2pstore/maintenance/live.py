"""The row of a bundle follows its live map: the map is synced first, and a crash may come between.

A row that is behind counts no copy under the map that holders are given.
"""

from __future__ import annotations

from p2pstore.store import BundleRow, BundleStore, Catalog, blocks


def left_of(store: BundleStore, row: BundleRow) -> int:
    """Bytes of the blocks that are alive. Blocks; BundleMissing, BundleDamaged."""
    entries = store.index(row.bundle_id).blocks.entries
    return sum(entries[i].length for i in store.live_map(row.bundle_id).indices())


def follow_map(catalog: Catalog, store: BundleStore, row: BundleRow) -> bool:
    """Whether the row was behind. Blocks; BundleMissing, BundleDamaged."""
    live = store.live_map(row.bundle_id)
    if live.seq <= row.seq:
        return False
    left = left_of(store, row)
    catalog.write(lambda db: blocks.set_live(db, row.id, live.seq, left)).result()
    return True
